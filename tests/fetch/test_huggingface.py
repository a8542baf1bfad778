"""A model from a hub: what lies on disk afterwards, and what its user is told."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_delivery.base import Permanent, Refused, Retryable
from model_delivery.models.sources.huggingface import HuggingFaceModel
from model_delivery.models.store.commit import Fetched
from model_delivery.steps.fetch import FetchInput
from model_delivery.steps.fetch import run as fetch
from tests.fetch import fetching
from tests.fetch.fetching import WEIGHTS, models
from tests.parts.hubs.huggingface import REPO, running_hub
from tests.parts.hubs.huggingface import HuggingFaceHub as Hub
from tests.parts.tiny_model import tiny_model

TOKEN = "hf_a-token-of-the-tests"  # noqa: S105


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub(tiny_model(tmp_path / "hub", size=3_000_000)) as made:
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        yield made


def model(**more: object) -> HuggingFaceModel:
    return HuggingFaceModel.model_validate({"source": "huggingface", "repo": REPO, **more})


def given(root: Path, wanted: HuggingFaceModel | None = None) -> FetchInput:
    return fetching.given(root, wanted or model())


def whole(done: Fetched, hub: Hub) -> None:
    fetching.whole(done, hub.files)


def test_a_fetched_model_is_whole_and_the_second_fetch_moves_nothing(hub: Hub, root: Path) -> None:
    done = fetch(given(root))
    whole(done, hub)
    assert done.fetched_bytes == done.bytes == sum(map(len, hub.files.values()))
    assert Path(done.path) == root / "models" / "huggingface" / "org--model" / hub.commit
    assert fetch(given(root)).fetched_bytes == 0


@pytest.mark.parametrize(
    ("status", "code", "kind", "message"),
    [
        (401, "RepoNotFound", Refused, "org/model was not found"),
        (403, "GatedRepo", Refused, "org/model is gated"),
        (403, "", Refused, "the hub refuses with status 403"),
        (404, "RevisionNotFound", Refused, "has no revision main"),
        (404, "RepoNotFound", Refused, "it does not exist, or it is private and no token is named"),
        (429, "", Retryable, "too many requests"),
        (500, "", Retryable, "the hub failed with status 500"),
        (503, "", Retryable, "the hub failed with status 503"),
    ],
)
def test_a_hub_that_says_no_is_no_success_though_the_folder_holds_files(
    hub: Hub, root: Path, status: int, code: str, kind: type[Exception], message: str
) -> None:
    folder = root / "models" / "huggingface" / "org--model" / hub.commit
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    hub.status, hub.error_code, hub.busy_times = status, code, -1
    with pytest.raises(kind, match=message):
        fetch(given(root))
    assert models(root) == []


def test_a_hub_that_cannot_be_reached_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", url)
        with pytest.raises(Retryable, match=f"{url} cannot be reached"):
            fetch(given(root))


def test_a_hub_that_is_busy_for_a_moment_is_asked_again_after_the_time_it_names(hub: Hub, root: Path) -> None:
    wanted = given(root)
    hub.status, hub.busy_times, hub.headers = 429, 2, {"Retry-After": "0"}
    whole(fetch(wanted), hub)


def test_flipped_bytes_are_thrown_away_and_never_become_a_model(hub: Hub, root: Path) -> None:
    hub.flipped = WEIGHTS
    with pytest.raises(Permanent, match=r"model\.safetensors is not what was listed"):
        fetch(given(root))
    assert models(root) == []
    assert not list(root.rglob(f"*{WEIGHTS}*"))
    hub.flipped = ""
    whole(fetch(given(root)), hub)


def test_a_small_file_with_flipped_bytes_is_found_by_its_git_hash(hub: Hub, root: Path) -> None:
    hub.flipped = "tokenizer.json"
    with pytest.raises(Permanent, match=r"tokenizer\.json is not what was listed"):
        fetch(given(root))
    assert models(root) == []


def test_a_body_that_is_cut_goes_on_where_it_was_cut(hub: Hub, root: Path) -> None:
    wanted = given(root)
    hub.truncated = WEIGHTS
    done = fetch(wanted)
    whole(done, hub)
    assert hub.sent == done.fetched_bytes == done.bytes
    assert [asked[1] for asked in hub.asked if asked[1]] == ["bytes=1500040-3000079"]


def test_a_lying_size_is_caught(hub: Hub, root: Path) -> None:
    hub.lying_size = WEIGHTS
    with pytest.raises((Permanent, Retryable), match=r"model\.safetensors (is not what was listed|broke off)"):
        fetch(given(root))
    assert models(root) == []


def test_two_fetchers_of_one_model_move_it_once(hub: Hub, root: Path, tmp_path: Path) -> None:
    (tmp_path / "input.json").write_text(given(root).model_dump_json())
    fetchers = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "model_delivery.steps.run",
                "fetch",
                str(tmp_path / "input.json"),
                str(tmp_path / f"out{n}"),
            ]
        )
        for n in range(2)
    ]
    assert [one.wait(60) for one in fetchers] == [0, 0]
    assert hub.sent == sum(map(len, hub.files.values()))


def test_a_moved_branch_never_mixes_commits(hub: Hub, root: Path) -> None:
    before = given(root)
    hub.files["config.json"] = b'{"model_type": "llama", "moved": true}'
    with pytest.raises(Refused, match="status 404"):
        fetch(before)
    assert models(root) == []
    whole(fetch(given(root)), hub)


@pytest.mark.parametrize(
    "name",
    ["../escaped.json", "/etc/escaped.json", "a/../../escaped.json", ".git/hooks.json", "a\u202eb.json", "a\nb.json"],
)
def test_a_name_that_could_leave_its_folder_is_refused(hub: Hub, root: Path, name: str) -> None:
    hub.files[name] = b"{}"
    with pytest.raises(Refused, match="is refused"):
        fetch(given(root, model(include=["*"])))
    assert not root.exists()


def test_names_that_differ_in_case_only_are_refused(hub: Hub, root: Path) -> None:
    hub.files["Config.json"] = b"{}"
    with pytest.raises(Refused, match="differ only in case"):
        fetch(given(root))


def test_pickles_and_remote_code_are_refused_unless_named(hub: Hub, root: Path) -> None:
    hub.files["pytorch_model.bin"] = b"pickle"
    with pytest.raises(Refused, match=r"pytorch_model\.bin is refused.*pickle"):
        fetch(given(root, model(include=["*"])))
    assert fetch(given(root, model(include=["*"], allow=["pickle"]))).files == 4
    hub.files |= {"config.json": b'{"model_type": "x", "auto_map": {"AutoModel": "x.Y"}}', "x.py": b"class Y: ..."}
    with pytest.raises(Refused, match="auto_map"):
        fetch(given(root))
    whole(fetch(given(root, model(include=["*"], allow=["remote-code", "pickle"]))), hub)


def test_a_file_that_was_damaged_later_is_fetched_again(hub: Hub, root: Path) -> None:
    done = fetch(given(root))
    (Path(done.path) / WEIGHTS).write_bytes(b"short")
    whole(fetch(given(root)), hub)


def test_the_token_is_sent_and_stays_out_of_every_file_and_message(
    hub: Hub, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    wanted = model(token={"env": "MY_TOKEN"})
    fetch(given(root, wanted))
    assert f"Bearer {TOKEN}" in hub.tokens
    hub.status, hub.busy_times = 403, -1
    with pytest.raises(Refused) as said:
        fetch(given(root, wanted))
    assert TOKEN not in str(said.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()] == []


def test_a_list_that_does_not_end_is_refused(hub: Hub, root: Path) -> None:
    hub.endless = True
    with pytest.raises(Refused, match="the list of org/model does not end"):
        given(root)


@pytest.mark.parametrize("wrong", [{"size": -1}, {"size": "large"}, {"size": None}, {"oid": "../../x"}, {"path": 7}])
def test_a_list_of_what_are_no_files_is_refused_by_name(hub: Hub, root: Path, wrong: dict[str, object]) -> None:
    hub.tree = lambda: [{"type": "file", "path": "a.json", "size": 2, "oid": "0" * 40} | wrong]  # type: ignore[method-assign]
    with pytest.raises(Refused, match="the list of org/model cannot be read"):
        given(root)
