"""A token goes to the scheme, host and port that it is for, and is shown nowhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model_delivery.base import BadInput, Refused, Trouble
from model_delivery.models.sources.git import GitModel
from model_delivery.models.sources.huggingface import HuggingFaceModel
from model_delivery.models.sources.spec import Remote
from model_delivery.places.cluster.binding import exposed
from model_delivery.run.resolve import resolve_model
from model_delivery.spec import load_spec, parse_spec
from model_delivery.steps.fetch import run as fetch
from tests.fetch.fetching import given, whole
from tests.fetch.test_verbs import deliver
from tests.parts.hubs import Hub, HubHandler, serving
from tests.parts.hubs.git_lfs import TICKET, GitServer, running_git
from tests.parts.hubs.git_lfs import Handler as GitHandler
from tests.parts.hubs.huggingface import REPO, HuggingFaceHub
from tests.parts.hubs.huggingface import Handler as HuggingFaceHandler
from tests.parts.tiny_model import tiny_model

TOKEN = "a-token-of-the-tests"  # noqa: S105
ELSEWHERE = ("127.0.0.2", "127.0.0.2")


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", TOKEN)


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://hub/signed/1", True),
        ("https://hub:443/signed/1", True),
        ("https://HUB/signed/1", True),
        ("http://hub/signed/1", False),
        ("http://hub:443/signed/1", False),
        ("https://hub:8443/signed/1", False),
        ("https://cdn.hub/signed/1", False),
        ("https://hub@cdn/signed/1", False),
    ],
)
def test_after_a_redirect_the_token_goes_to_the_same_scheme_host_and_port_only(url: str, kept: bool) -> None:
    headers = {"Authorization": TOKEN}
    assert Remote("https://hub/resolve/x", headers).moved(url).headers == (headers if kept else {})


class Redirecting(HubHandler):
    """Sends whoever asks to ``hub.error_code``, an address."""

    def do_GET(self) -> None:
        self.refused()
        self.answer(301, b"", {"Location": self.hub.error_code + self.path})

    def do_POST(self) -> None:
        self.do_GET()


@pytest.fixture
def git_hub(tmp_path: Path) -> Iterator[GitServer]:
    with running_git(tiny_model(tmp_path / "model"), tmp_path / "git") as made:
        made.token = TOKEN
        yield made


def of_git(repo: str) -> GitModel:
    return GitModel.model_validate({"source": "git", "repo": repo, "token": {"env": "MY_TOKEN"}})


def test_a_git_token_does_not_follow_a_redirect_to_another_host(git_hub: GitServer) -> None:
    with serving(Redirecting, Hub({}, error_code=git_hub.url), at=ELSEWHERE) as first:
        with pytest.raises(Refused, match="may not be read"):
            resolve_model(of_git(f"{first.url}/org/model.git"))
        git_hub.token = ""  # whoever lets everybody in is not told it either
        resolve_model(of_git(f"{first.url}/org/model.git"))
    assert git_hub.tokens == {""}


def test_a_git_token_follows_a_redirect_on_its_own_host(git_hub: GitServer, root: Path) -> None:
    class Moved(GitHandler):
        def serve(self, body: bytes) -> None:
            if self.path.startswith("/old/"):
                self.answer(301, b"", {"Location": self.path.replace("/old/", "/org/")})
            else:
                super().serve(body)

    with serving(Moved, git_hub):
        whole(fetch(given(root, of_git(f"{git_hub.url}/old/model.git"))), git_hub.files)


def test_a_ticket_of_git_lfs_does_not_follow_a_redirect_to_another_host(git_hub: GitServer, root: Path) -> None:
    class Elsewhere(GitHandler):
        def serve(self, body: bytes) -> None:
            seen.add(self.headers.get("X-Ticket", ""))
            self.send(git_hub.by_oid(self.path.rpartition("/")[2]))

    class Sending(GitHandler):
        def serve(self, body: bytes) -> None:
            if self.path.startswith("/lfs/"):
                asked.add(self.headers.get("X-Ticket", ""))
                self.answer(302, b"", {"Location": f"{other.url}{self.path}"})
            else:
                super().serve(body)

    seen, asked = set[str](), set[str]()
    with serving(Elsewhere, GitServer(git_hub.files), at=ELSEWHERE) as other, serving(Sending, git_hub):
        whole(fetch(given(root, of_git(git_hub.remote))), git_hub.files)
    assert (asked, seen) == ({TICKET}, {""})


def test_the_next_page_of_a_list_does_not_get_the_token_of_another_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Paged(HuggingFaceHandler):
        def answer_json(self, value: Any, status: int = 200) -> None:
            more = (
                {"Link": f'<{other.url}{self.path}>; rel="next"'} if "/tree/" in self.path and self.hub is hub else {}
            )
            page = value[:2] if more else value
            self.answer(status, json.dumps(page).encode(), {"Content-Type": "application/json", **more})

    hub = HuggingFaceHub({path.name: path.read_bytes() for path in tiny_model(tmp_path / "hub").iterdir()})
    with serving(Paged, HuggingFaceHub(hub.files), at=ELSEWHERE) as other, serving(Paged, hub):
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        model = {"source": "huggingface", "repo": REPO, "token": {"env": "MY_TOKEN"}}
        assert len(resolve_model(HuggingFaceModel.model_validate(model)).files) == 3
    assert (hub.tokens, other.tokens) == ({f"Bearer {TOKEN}"}, {""})


# addresses that hold a secret


SECRETIVE = [
    f"https://user:{TOKEN}@host/x.git",
    f"https://{TOKEN}@host/x.git",
    f"ssh://git:{TOKEN}@host/x.git",
    f"https://host/x.git?private_token={TOKEN}",
    f"http://[{TOKEN}/x.git",
]


@pytest.mark.parametrize("repo", SECRETIVE)
def test_an_address_with_a_secret_in_it_is_refused_with_the_spec_and_not_repeated(tmp_path: Path, repo: str) -> None:
    spec = tmp_path / "spec.yaml"
    fallback = "{source: modelscope, repo: a/b, revision: r}"
    spec.write_text(
        "apiVersion: model-delivery/v1\nname: m\nmodel:\n  source: git\n"
        f"  repo: {json.dumps(repo)}\n  fallback: [{fallback}]\ntarget: {{kind: process, engine: vllm}}\n"
    )
    with pytest.raises(BadInput) as said:
        load_spec(spec)
    assert f"{spec}:5:3: model.repo: must be an address without user" in said.value.text
    assert TOKEN not in said.value.text


@pytest.mark.parametrize("repo", ["git@host:org/x.git", "ssh://git@host/x.git", "https://host:8443/x.git", "/srv/x"])
def test_a_user_of_ssh_and_a_port_are_no_secret(repo: str) -> None:
    asked = {"apiVersion": "model-delivery/v1", "name": "m", "target": {"kind": "process", "engine": "vllm"}}
    assert parse_spec({**asked, "model": {"source": "git", "repo": repo}}).model.repo == repo


def test_a_token_in_an_address_of_the_command_line_ends_with_2_and_is_not_repeated(tmp_path: Path) -> None:
    said = deliver("fetch", f"git:https://user:{TOKEN}@host/x.git@main", tmp_path / "out", code=2)
    assert "--token-env" in said
    assert TOKEN not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("endpoint", [f"https://user:{TOKEN}@hub", f"https://hub?token={TOKEN}", "hub.example", "ftp://hub"])  # fmt: skip
def test_a_hubs_address_that_is_not_plain_is_refused_and_not_repeated(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(Refused, match="HF_ENDPOINT is no plain address") as said:
        resolve_model(HuggingFaceModel.model_validate({"source": "huggingface", "repo": REPO}))
    assert TOKEN not in said.value.text


@pytest.mark.parametrize("name", ["HF_ENDPOINT", "MODELSCOPE_ENDPOINT", "HTTPS_PROXY", "http_proxy"])
def test_a_steps_job_is_never_passed_a_password(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert exposed() == []
    monkeypatch.setenv(name, f"http://user:{TOKEN}@host:8080")
    (finding,) = exposed()
    assert finding.what == f"{name} holds a user or a password"
    assert TOKEN not in str(finding)


def test_an_answer_of_git_lfs_that_is_no_address_is_refused(git_hub: GitServer, root: Path) -> None:
    class Wrong(GitHandler):
        def batch(self, asked: dict[str, list[dict[str, object]]]) -> None:
            action = {"href": "file:///etc/passwd", "header": {"X": "a\r\nb"}}
            objects = [{**one, "actions": {"download": action}} for one in asked["objects"]]
            self.answer_json({"transfer": "basic", "objects": objects})

    with serving(Wrong, git_hub), pytest.raises(Trouble, match="no answer of git-LFS's batch API"):
        fetch(given(root, of_git(git_hub.remote)))
