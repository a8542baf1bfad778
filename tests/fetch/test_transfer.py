"""Hubs that stall, trickle, ignore ranges, send elsewhere, or lie behind a proxy or a
private authority.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from huggingface_hub import close_session

from model_delivery.base import Permanent, Refused, Retryable
from model_delivery.models.manifest import WORK, model_folder
from model_delivery.models.sources import http, huggingface, modelscope
from model_delivery.models.sources.huggingface import HuggingFaceModel
from model_delivery.models.sources.modelscope import ModelScopeModel
from model_delivery.models.store.commit import Fetched
from model_delivery.models.store.commit import fetch as fetch_into
from model_delivery.models.store.part import CHUNK, part_of
from model_delivery.models.store.transfer import Patience
from model_delivery.models.store.workspace import FREE
from model_delivery.run.resolve import resolve_model
from model_delivery.steps.fetch import run as fetch
from model_delivery.values import File
from tests.fetch.fetching import WEIGHTS, given, models, whole
from tests.parts.hubs.huggingface import REPO, HuggingFaceHub, running_hub
from tests.parts.hubs.modelscope import running_modelscope
from tests.parts.tiny_model import tiny_model

MODEL = HuggingFaceModel.model_validate({"source": "huggingface", "repo": REPO})
IMPATIENT = Patience(stall=3, tries=2, longest_wait=0.1)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HuggingFaceHub]:
    with running_hub(tiny_model(tmp_path / "hub", size=6 * CHUNK)) as made:
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        yield made


def fetch_impatiently(root: Path, patience: Patience = IMPATIENT) -> Fetched:
    snapshot = resolve_model(MODEL)
    return fetch_into(MODEL, snapshot, model_folder(root, snapshot), patience)


@pytest.mark.parametrize("fault", ["stalled", "trickling"])
def test_a_hub_that_stops_giving_is_given_up_and_what_came_is_kept(hub: HuggingFaceHub, root: Path, fault: str) -> None:
    setattr(hub, fault, WEIGHTS)
    with pytest.raises(Retryable, match=r"(?s)model\.safetensors broke off.*run again: it goes on where it was cut"):
        fetch_impatiently(root)
    assert models(root) == []
    setattr(hub, fault, "")
    hub.sent = 0
    done = fetch(given(root, MODEL))
    whole(done, hub.files)
    assert hub.sent < done.bytes


def test_a_hub_whose_head_drips_is_given_up(hub: HuggingFaceHub, root: Path) -> None:
    hub.dripping = f"resolve/{hub.commit}/{WEIGHTS}"
    with pytest.raises(Retryable, match=r"model\.safetensors broke off"):
        fetch_impatiently(root)
    hub.dripping = ""
    whole(fetch(given(root, MODEL)), hub.files)


@pytest.mark.parametrize("dripping", ["/revision/", "/tree/"])
def test_a_list_whose_head_drips_is_given_up(
    hub: HuggingFaceHub, monkeypatch: pytest.MonkeyPatch, dripping: str
) -> None:
    monkeypatch.setattr(huggingface, "LONGEST_LIST", 1.0)
    hub.dripping = dripping
    with pytest.raises(Retryable, match="cannot be reached"):
        resolve_model(MODEL)


def test_modelscopes_list_whose_head_drips_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelscope, "LONGEST_LIST", 1.0)
    with running_modelscope(tiny_model(tmp_path / "other")) as other:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", other.url)
        other.dripping = "/"
        with pytest.raises(Retryable, match="cannot be reached"):
            resolve_model(ModelScopeModel(source="modelscope", repo=REPO))


@pytest.mark.parametrize("dripping", ["/resolve/", "/revision/"])
def test_a_fetch_that_waits_for_a_dripping_head_ends_at_an_interrupt(
    hub: HuggingFaceHub, tmp_path: Path, dripping: str
) -> None:
    hub.dripping = dripping
    command = [
        str(Path(sys.executable).with_name("deliver")),
        "fetch",
        f"huggingface:{REPO}@main",
        str(tmp_path / "fetched"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as fetching:
        assert hub.stuck.wait(60)
        fetching.send_signal(signal.SIGINT)
        assert fetching.wait(10) == 5


def test_a_chunk_whose_size_drips_is_given_up(hub: HuggingFaceHub, root: Path) -> None:
    hub.chunking = WEIGHTS
    with pytest.raises(Retryable, match=r"model\.safetensors broke off"):
        fetch_impatiently(root, Patience(stall=1, tries=1))


def test_a_server_without_ranges_gives_whole_files(hub: HuggingFaceHub, root: Path) -> None:
    hub.whole_only = True
    whole(fetch(given(root, MODEL)), hub.files)


def test_a_server_without_ranges_that_breaks_off_is_read_from_the_start(hub: HuggingFaceHub, root: Path) -> None:
    hub.whole_only, hub.truncated = True, WEIGHTS
    whole(fetch(given(root, MODEL)), hub.files)


def test_a_signed_address_that_expires_is_asked_for_again(hub: HuggingFaceHub, root: Path) -> None:
    hub.redirected, hub.uses = True, 1
    whole(fetch(given(root, MODEL)), hub.files)
    assert len(hub.signatures) > len(hub.files)


def test_a_signed_address_is_used_as_long_as_it_holds(hub: HuggingFaceHub, root: Path) -> None:
    hub.redirected = True
    whole(fetch(given(root, MODEL)), hub.files)
    assert len(hub.signatures) <= len(hub.files) + 8


def test_the_token_does_not_follow_a_redirect_to_another_host(
    hub: HuggingFaceHub, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "hf-secret-of-the-tests")
    with running_hub(tiny_model(tmp_path / "cdn", size=6 * CHUNK)) as cdn:
        hub.elsewhere = cdn.url
        whole(
            fetch(given(root, HuggingFaceModel.model_validate({**MODEL.model_dump(), "token": {"env": "MY_TOKEN"}}))),
            hub.files,
        )
        assert cdn.tokens == {""}
        assert "Bearer hf-secret-of-the-tests" in hub.tokens


def test_a_symbolic_link_in_the_store_is_never_followed_out(hub: HuggingFaceHub, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "config.json").write_text("mine")
    hub.files["sub/more.json"] = b"{}"
    wanted = given(root, HuggingFaceModel.model_validate({**MODEL.model_dump(), "include": ["*"]}))
    folder = model_folder(root, wanted.snapshot)
    folder.mkdir(parents=True)
    (folder / "config.json").symlink_to(outside / "config.json")
    (folder / "sub").symlink_to(outside)
    left = folder / WORK / FREE
    left.mkdir(parents=True)
    part_of(File(path=WEIGHTS, size=1), left).symlink_to(outside / "part")
    whole(fetch(wanted), hub.files)
    assert {path.name: path.read_text() for path in outside.iterdir()} == {"config.json": "mine"}


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Of localhost, its key with it; ``cert`` beside it is what to trust."""
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
        "-keyout",
        str(tmp_path / "key"),
    ]
    subprocess.run(
        [*command, "-out", str(tmp_path / "cert"), "-addext", "subjectAltName=DNS:localhost"],
        check=True,
        capture_output=True,
    )
    (tmp_path / "hub.pem").write_text((tmp_path / "key").read_text() + (tmp_path / "cert").read_text())
    return tmp_path / "hub.pem"


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_a_private_authority_is_honoured_by_modelscopes_library_too(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certificate: Path, variable: str
) -> None:
    for other in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(other, raising=False)
    model = ModelScopeModel.model_validate({"source": "modelscope", "repo": REPO})
    with running_modelscope(tiny_model(tmp_path / "hub"), certificate) as hub:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.url)
        with pytest.raises(Retryable, match="cannot be reached"):
            given(root, model)
        monkeypatch.setenv(variable, str(tmp_path / "cert"))
        whole(fetch(given(root, model)), hub.files)


def test_a_private_authority_is_honoured_for_the_list_and_for_the_bytes(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certificate: Path
) -> None:
    with running_hub(tiny_model(tmp_path / "hub", size=3_000_000), certificate) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(Retryable, match="cannot be reached"):
            given(root, MODEL)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert"))
        close_session()
        whole(fetch(given(root, MODEL)), hub.files)


class Proxy(BaseHTTPRequestHandler):
    """An HTTP proxy: it answers absolute addresses by asking them itself."""

    seen: list[str]

    def do_GET(self) -> None:
        self.seen.append(self.path)
        told = httpx.get(
            self.path,
            headers={k: v for k, v in self.headers.items() if k in ("Range", "Authorization")},
            trust_env=False,
        )
        self.send_response(told.status_code)
        for name in ("Content-Type", "Content-Range"):
            if name in told.headers:
                self.send_header(name, told.headers[name])
        self.send_header("Content-Length", str(len(told.content)))
        self.end_headers()
        self.wfile.write(told.content)

    def log_message(self, *_: object) -> None:
        """Quiet."""


def test_the_environments_proxy_is_used_for_the_list_and_for_the_bytes(
    hub: HuggingFaceHub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Proxy,), {"seen": seen}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    whole(fetch(given(root, MODEL)), hub.files)
    server.shutdown()
    server.server_close()
    assert any("/api/models/" in path for path in seen)
    assert any(path.endswith(WEIGHTS) for path in seen)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    close_session()
    assert fetch(given(root, MODEL)).fetched_bytes == 0


def test_what_the_hub_asks_for_in_retry_after_is_what_is_waited() -> None:
    assert http.seconds("7") == 7
    assert http.seconds("100000") == 120
    assert http.seconds("Thu, 01 Jan 1970 00:00:00 GMT") == 0
    assert http.seconds("soon") is None
    assert http.seconds("\N{SUPERSCRIPT TWO}") is None


def test_a_hub_that_stays_busy_ends_in_its_own_words(hub: HuggingFaceHub, root: Path) -> None:
    snapshot = resolve_model(MODEL)
    hub.status, hub.busy_times = 503, -1
    with pytest.raises(Retryable, match="the hub failed with status 503"):
        fetch_into(MODEL, snapshot, model_folder(root, snapshot), IMPATIENT)


@pytest.mark.parametrize("address", ["http://[", "file:///etc/passwd"])
def test_a_redirect_to_what_is_no_address_is_told(hub: HuggingFaceHub, root: Path, address: str) -> None:
    hub.elsewhere = address
    with pytest.raises((Retryable, Refused), match="broke off"):
        fetch_impatiently(root)
    assert models(root) == []


def test_a_spec_that_wants_other_files_of_the_same_commit_gets_those(hub: HuggingFaceHub, root: Path) -> None:
    hub.files["notes.txt"] = b"more"
    for include in (["*.json", WEIGHTS], ["*"], ["*.json", WEIGHTS]):
        model = HuggingFaceModel.model_validate({**MODEL.model_dump(), "include": include})
        wanted = given(root, model)
        whole(fetch(wanted), {file.path: hub.files[file.path] for file in wanted.snapshot.files})


def test_a_list_that_is_no_list_and_one_without_end_are_told(hub: HuggingFaceHub, root: Path) -> None:
    hub.listed = [{"type": "file", "path": "config.json", "lfs": True}]
    with pytest.raises(Refused, match=r"the list of org/model cannot be read"):
        given(root, MODEL)
    hub.listed = ["x" * (1 << 20)] * 20
    with pytest.raises(Retryable, match=r"cannot be reached"):
        given(root, MODEL)


def test_different_models_go_side_by_side(
    hub: HuggingFaceHub, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_modelscope(tiny_model(tmp_path / "other", size=3_000_000)) as other:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", other.url)
        hub.stalled = WEIGHTS
        with ThreadPoolExecutor() as pool:
            first = pool.submit(fetch, given(root, MODEL))
            assert hub.stuck.wait(30)
            whole(fetch(given(root, ModelScopeModel(source="modelscope", repo=REPO))), other.files)
            assert not first.done()
            hub.stalled = ""
            hub.go_on.set()
            whole(first.result(60), hub.files)


def test_more_bytes_than_listed_are_refused(hub: HuggingFaceHub, root: Path) -> None:
    wanted = given(root, MODEL)
    short = wanted.snapshot.model_copy(
        update={
            "files": tuple(
                f.model_copy(update={"size": f.size - 1}) if f.path == WEIGHTS else f for f in wanted.snapshot.files
            )
        }
    )
    with pytest.raises(Permanent, match=r"model\.safetensors is not what was listed"):
        fetch(wanted.model_copy(update={"snapshot": short}))
    assert models(root) == []
