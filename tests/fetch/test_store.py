"""What a store may touch, and what it must not: a hub's words, links that others planted,
other homes' models, a fetcher that was only stopped.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from model_delivery.base import Permanent, Refused, Trouble
from model_delivery.models.manifest import MANIFEST, MODELS, model_folder, write_manifest
from model_delivery.models.sources.huggingface import HuggingFaceModel
from model_delivery.models.store.commit import fetch as fetch_into
from model_delivery.models.store.garbage import Collector, user_of
from model_delivery.models.store.part import CHUNK
from model_delivery.models.store.transfer import Patience
from model_delivery.steps.fetch import run as fetch
from tests.fetch.fetching import WEIGHTS, given, models, whole
from tests.fetch.test_verbs import deliver
from tests.parts.hubs import files_of, serving
from tests.parts.hubs.huggingface import REPO, Handler, HuggingFaceHub, running_hub
from tests.parts.hubs.modelscope import running_modelscope
from tests.parts.tiny_model import tiny_model

MODEL = HuggingFaceModel.model_validate({"source": "huggingface", "repo": REPO})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HuggingFaceHub]:
    with running_hub(tiny_model(tmp_path / "hub", size=4 * CHUNK)) as made:
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        yield made


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """Somebody's own data; it must be as it was."""
    folder = tmp_path / "victim"
    (folder / "thesis").mkdir(parents=True)
    (folder / "thesis" / "chapter1.txt").write_text("years of work")
    yield folder
    assert [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*"))] == [
        "thesis",
        "thesis/chapter1.txt",
    ]


@pytest.mark.parametrize(
    "sha", ["../../../../victim", "/var/victim", "main", "..", "0" * 39, "0" * 40 + "\n", "0" * 40 + "/..", "A" * 40]
)
def test_a_commit_that_is_none_is_refused_and_becomes_no_path(
    tmp_path: Path, root: Path, victim: Path, monkeypatch: pytest.MonkeyPatch, sha: str
) -> None:
    class Lying(Handler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if "/revision/" in path:
                self.answer_json({"id": REPO, "sha": sha, "private": False, "tags": [], "downloads": 0})
            elif "/api/" in path:
                self.answer_json(self.hub.tree())
            else:
                self.send(path.rpartition("/")[2])

    with serving(Lying, HuggingFaceHub(files_of(tiny_model(tmp_path / "hub")))) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(Refused, match=f"huggingface {REPO} names no commit"):
            given(root, MODEL)
    assert not root.exists()


@pytest.mark.parametrize("level", range(4))
def test_a_link_in_the_stores_own_path_is_refused(hub: HuggingFaceHub, root: Path, victim: Path, level: int) -> None:
    wanted = given(root, MODEL)
    folder = model_folder(root, wanted.snapshot)
    planted = [folder, *folder.parents][level]
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.symlink_to(victim)
    with pytest.raises(Refused, match="is a link or a file: it could lead anywhere"):
        fetch(wanted)


def test_the_folder_that_a_user_names_may_be_a_link_of_theirs(hub: HuggingFaceHub, tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "there").symlink_to(tmp_path / "large")
    deliver("fetch", f"huggingface:{REPO}", tmp_path / "there")
    assert (tmp_path / "large" / MANIFEST).exists()


def test_a_stopped_fetcher_has_nothing_open_of_what_its_successor_verified(
    hub: HuggingFaceHub, root: Path, tmp_path: Path
) -> None:
    wanted = given(root, MODEL)
    (tmp_path / "input.json").write_text(wanted.model_dump_json())
    step = [sys.executable, "-m", "model_delivery.steps.run", "fetch", str(tmp_path / "input.json")]
    hub.stalled = WEIGHTS
    with subprocess.Popen([*step, str(tmp_path / "out")]) as stopped:
        assert hub.stuck.wait(60)
        os.kill(stopped.pid, signal.SIGSTOP)
        hub.stalled = ""
        done = fetch(wanted)
        whole(done, hub.files)
        theirs = {path.stat().st_ino for path in Path(f"/proc/{stopped.pid}/fd").iterdir()}
        assert not theirs & {path.stat().st_ino for path in Path(done.path).rglob("*") if path.is_file()}
        hub.go_on.set()
        os.kill(stopped.pid, signal.SIGCONT)
        assert stopped.wait(60) == 1
    assert "another fetch has taken the folder over" in (tmp_path / "out").read_text()
    whole(done, hub.files)


def fetch_for(home: Path, root: Path, monkeypatch: pytest.MonkeyPatch, **files: bytes) -> Path:
    """The model, with these files too, as a run of this home fetches it."""
    home.mkdir(exist_ok=True)
    monkeypatch.setenv("MODEL_DELIVERY_HOME", str(home))
    with running_hub(tiny_model(root.parent / "source")) as hub:
        hub.files.update({f"{name}.json": body for name, body in files.items()})
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        return Path(fetch(given(root, MODEL)).path)


def test_gc_in_a_shared_store_leaves_what_others_use_or_made(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    both, mine = fetch_for(one, root, monkeypatch), fetch_for(one, root, monkeypatch, mine=b"{}")
    assert fetch_for(two, root, monkeypatch) == both
    theirs = fetch_for(two, root, monkeypatch, theirs=b"[]")
    by_hand = [root / MODELS / "meta-llama" / "Llama" / "original", root / MODELS / "huggingface" / "a--b" / ("a" * 40)]
    for folder in by_hand:
        folder.mkdir(parents=True)
        (folder / "weights.pth").write_text("mine")
    added_to = fetch_for(one, root, monkeypatch, added=b"1")
    (added_to / "checkpoint.pt").write_text("mine")

    def gone(home: Path, *wanted: Path) -> list[Path]:
        return [item.path for item in Collector(home, lambda: {*wanted}).collect([root], dry_run=False)]

    assert gone(one) == [mine]
    assert all(path.is_dir() for path in (both, theirs, added_to, *by_hand))
    assert gone(two, theirs) == [both], "the first home has let go of it"
    assert gone(tmp_path / "third") == []
    assert sorted(path for path in root.rglob("weights.pth")) == sorted(folder / "weights.pth" for folder in by_hand)


@pytest.mark.parametrize("name", ["config.json", ".model-delivery/notes.txt", ".model-delivery.mine", "sub/more.bin"])
@pytest.mark.parametrize("state", ["whole", "begun"])
def test_gc_leaves_what_a_user_changed_or_added_and_says_so_by_name(
    hub: HuggingFaceHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, state: str
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("MODEL_DELIVERY_HOME", str(home))
    home.mkdir()
    hub.missing = WEIGHTS if state == "begun" else ""
    with suppress(Trouble):
        fetch(given(home, MODEL))
    (folder,) = (path for path in home.glob("models/*/*/*") if not path.name.startswith("."))
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_text('{"mine": 1}')
    for _ in range(2):
        assert "nothing to remove" in (said := deliver("gc"))
        assert str(folder) in said
        assert name in said
        assert file.read_text() == '{"mine": 1}'
    file.unlink()
    assert f"removed {folder}" in deliver("gc")
    assert not folder.exists()


def test_a_copy_of_a_home_is_another_user_of_the_store(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    name = user_of(tmp_path / "one")
    (tmp_path / "two" / "store-user").write_bytes((tmp_path / "one" / "store-user").read_bytes())
    assert user_of(tmp_path / "one") == name != user_of(tmp_path / "two")


def test_a_manifest_names_all_that_is_listed_or_is_not_written(hub: HuggingFaceHub, root: Path) -> None:
    wanted = given(root, MODEL)
    with pytest.raises(Permanent, match="the model is not whole: 3 files are listed, 0 were brought"):
        write_manifest(root, wanted.snapshot, [])
    assert models(root) == []


@pytest.mark.parametrize("at", ["half", "whole"])
def test_a_killed_fetch_of_a_folder_goes_on_by_the_same_command(hub: HuggingFaceHub, tmp_path: Path, at: str) -> None:
    there = tmp_path / "there"
    command = [sys.executable, "-m", "model_delivery.cli.main", "fetch", f"huggingface:{REPO}", str(there)]
    hub.stalled = WEIGHTS
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as killed:
        assert hub.stuck.wait(60)
        killed.kill()
    hub.stalled = ""
    if at == "whole":  # it had all, and was writing its manifest
        (work,) = (there / ".model-delivery").iterdir()
        (work / f"{MANIFEST}.new").write_text('{"manifest_version": 1, "sour')
    deliver("fetch", f"huggingface:{REPO}", there)
    assert sorted(path.name for path in there.iterdir()) == sorted([MANIFEST, *hub.files])


def test_a_file_that_was_changed_in_its_place_is_fetched_again(hub: HuggingFaceHub, tmp_path: Path) -> None:
    there = tmp_path / "there"
    deliver("fetch", f"huggingface:{REPO}", there)
    with (there / WEIGHTS).open("r+b") as weights:
        weights.seek(-1, os.SEEK_END)
        weights.write(b"\x01")
    assert "was changed" in deliver("verify", there, code=1)
    deliver("fetch", f"huggingface:{REPO}", there)
    assert (there / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    deliver("verify", there, "--deep")


@pytest.mark.root
def test_a_volume_below_a_read_only_folder_can_be_filled(hub: HuggingFaceHub, tmp_path: Path) -> None:
    above = tmp_path / "above"
    above.mkdir()
    mounts: list[list[str]] = [["mount", "-t", "tmpfs", "none", str(above)]]
    mounts += [["mkdir", str(above / "models")], ["mount", "-t", "tmpfs", "none", str(above / "models")]]
    mounts += [["mkdir", str(above / "models" / "lost+found")], ["mount", "-o", "remount,ro", str(above)]]
    for command in mounts:
        subprocess.run(command, check=True)
    try:
        deliver("fetch", f"huggingface:{REPO}", above / "models")
        assert sorted(path.name for path in (above / "models").iterdir()) == sorted(
            [MANIFEST, "lost+found", *hub.files]
        )
    finally:
        subprocess.run(["umount", "-R", str(above)], check=True)


@pytest.mark.parametrize("length", [243, 248, 255])
def test_a_file_whose_name_is_as_long_as_may_be_is_fetched(hub: HuggingFaceHub, root: Path, length: int) -> None:
    hub.files["a" * (length - 5) + ".json"] = b"{}"
    whole(fetch(given(root, MODEL)), hub.files)


class Gone(Handler):
    """Sends whole files only, and breaks off in the middle of the weights."""

    def send(self, name: str, files: Mapping[str, bytes] | None = None) -> None:
        hub: Any = self.hub
        if name == WEIGHTS and not self.headers.get("Range"):
            hub.truncated = name
        super().send(name, files)
        if name == WEIGHTS and not hub.truncated:
            hub.missing = hub.missing or (hub.then_missing and name)


@pytest.mark.parametrize("then_missing", [True, False])
def test_weights_that_a_hub_without_ranges_stops_giving_come_whole_from_the_next(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, then_missing: bool
) -> None:
    first: Any = HuggingFaceHub(files_of(tiny_model(tmp_path / "m", size=5 * CHUNK)), whole_only=True)
    first.then_missing = then_missing
    with serving(Gone, first), running_modelscope(tmp_path / "m") as second:
        monkeypatch.setenv("HF_ENDPOINT", first.url)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", second.url)
        fallback = [{"source": "modelscope", "repo": REPO, "revision": "master"}]
        wanted = given(root, HuggingFaceModel.model_validate({**MODEL.model_dump(), "fallback": fallback}))
        folder = model_folder(root, wanted.snapshot)
        done = fetch_into(HuggingFaceModel.model_validate(wanted.model), wanted.snapshot, folder, Patience(5, 2, 0.1))
    whole(done, first.files)


def test_what_ends_a_fetch_is_told_while_other_streams_are_cut(hub: HuggingFaceHub, root: Path) -> None:
    hub.headers["Connection"] = "close"
    wanted = given(root, MODEL)
    hub.flipped = "tokenizer.json"
    for number in range(8):
        with pytest.raises(Permanent, match=r"tokenizer\.json is not what was listed"):
            fetch(wanted.model_copy(update={"root": str(root / str(number))}))
