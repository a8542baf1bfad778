"""A fetch that was cut goes on where it was: at most one chunk a stream is fetched
again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from io import BufferedWriter
from pathlib import Path

import pytest

from model_delivery.base import Permanent, Refused
from model_delivery.models.sources.huggingface import HuggingFaceModel
from model_delivery.models.store.part import CHUNK, part_of
from model_delivery.models.store.transfer import STREAMS
from model_delivery.steps.fetch import FetchInput
from model_delivery.steps.fetch import run as fetch
from model_delivery.values import File
from tests.fetch.fetching import WEIGHTS, given, models, whole
from tests.parts.hubs.huggingface import REPO, HuggingFaceHub, running_hub
from tests.parts.tiny_model import tiny_model

SIZE = 24 * CHUNK
PART = part_of(File(path=WEIGHTS, size=SIZE), Path()).name
NOTES = Path(PART).with_suffix(".chunks").name
MODEL = HuggingFaceModel.model_validate({"source": "huggingface", "repo": REPO})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HuggingFaceHub]:
    with running_hub(tiny_model(tmp_path / "hub", size=SIZE)) as made:
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        yield made


def step(wanted: FetchInput, folder: Path) -> subprocess.Popen[bytes]:
    (folder / "input.json").write_text(wanted.model_dump_json())
    return subprocess.Popen(
        [sys.executable, "-m", "model_delivery.steps.run", "fetch", str(folder / "input.json"), str(folder / "out")]
    )


def noted(root: Path) -> int:
    """Chunks that are on the disk, as their notes say."""
    notes = list(root.rglob(NOTES))
    return notes[0].read_text().count("\n\n") if notes else 0


def killed_half_way(hub: HuggingFaceHub, wanted: FetchInput, root: Path, tmp_path: Path) -> int:
    """Kill a fetch that has the first half of the file and is stuck; returns how many
    bytes had been sent.
    """
    hub.stalled = WEIGHTS
    with step(wanted, tmp_path) as running:
        assert hub.stuck.wait(60)
        enough = 6
        while noted(root) < enough:
            assert running.poll() is None
        os.kill(running.pid, signal.SIGKILL)
    assert models(root) == []
    hub.stalled = ""
    sent, hub.sent = hub.sent, 0
    return sent


def test_after_kill_9_at_most_one_chunk_a_stream_is_fetched_again(
    hub: HuggingFaceHub, root: Path, tmp_path: Path
) -> None:
    wanted = given(root, MODEL)
    before = killed_half_way(hub, wanted, root, tmp_path)
    done = fetch(wanted)
    whole(done, hub.files)
    assert done.fetched_bytes == hub.sent
    assert before + hub.sent <= done.bytes + STREAMS * CHUNK
    assert hub.sent < done.bytes


def test_after_a_reboot_that_lost_what_was_not_synced_the_bytes_are_right(
    hub: HuggingFaceHub, root: Path, tmp_path: Path
) -> None:
    """A node that loses power loses the pages that nobody synced: they are zeroed here,
    all but the chunks that are noted.
    """
    wanted = given(root, MODEL)
    before = killed_half_way(hub, wanted, root, tmp_path)
    (part,) = root.rglob(PART)
    (notes,) = root.rglob(NOTES)
    synced = {
        int(line.split()[0]) for line in notes.read_text().splitlines() if line and line.split()[0] == line.split()[-1]
    }
    with part.open("r+b") as file:
        for number in sorted(set(range(SIZE // CHUNK + 1)) - synced):
            file.seek(number * CHUNK)
            file.write(bytes(max(0, min(CHUNK, part.stat().st_size - number * CHUNK))))
    done = fetch(wanted)
    whole(done, hub.files)
    assert before + hub.sent <= done.bytes + STREAMS * CHUNK


def test_chunks_that_rotted_meanwhile_are_found_and_fetched_again(
    hub: HuggingFaceHub, root: Path, tmp_path: Path
) -> None:
    wanted = given(root, MODEL)
    killed_half_way(hub, wanted, root, tmp_path)
    (part,) = root.rglob(PART)
    with part.open("r+b") as file:
        file.write(b"rotten")
    whole(fetch(wanted), hub.files)


def test_notes_that_were_cut_count_only_what_is_whole(hub: HuggingFaceHub, root: Path, tmp_path: Path) -> None:
    wanted = given(root, MODEL)
    killed_half_way(hub, wanted, root, tmp_path)
    (notes,) = root.rglob(NOTES)
    text = notes.read_text()
    notes.write_text(text[: len(text) - 2] + "\n1")
    whole(fetch(wanted), hub.files)


def test_orphans_of_a_dead_run_are_swept(hub: HuggingFaceHub, root: Path) -> None:
    wanted = given(root, MODEL)
    folder = root / "models" / "huggingface" / "org--model" / hub.commit
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    (folder / ".cache" / "huggingface" / "x.incomplete").write_bytes(b"left")
    (folder / ".other.safetensors.part").write_bytes(b"left")
    (folder / "stranger.py").write_text("print()")
    whole(fetch(wanted), hub.files)
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [hub.commit]


def test_files_that_lie_there_under_their_names_are_hashed_and_adopted(hub: HuggingFaceHub, root: Path) -> None:
    wanted = given(root, MODEL)
    folder = root / "models" / "huggingface" / "org--model" / hub.commit
    folder.mkdir(parents=True)
    (folder / WEIGHTS).write_bytes(hub.files[WEIGHTS])
    (folder / "tokenizer.json").write_bytes(b"{]")
    done = fetch(wanted)
    whole(done, hub.files)
    assert hub.sent < SIZE
    assert done.origins == {"found in place": 1, f"huggingface {REPO}": 2}


@pytest.mark.root
def test_a_disk_that_is_too_small_is_refused_before_the_first_byte(
    hub: HuggingFaceHub, root: Path, small_disk: int
) -> None:
    wanted = given(root, MODEL)
    hub.sent = 0
    with pytest.raises(Refused, match="the disk is too small for the model"):
        fetch(wanted)
    assert hub.sent == 0
    assert small_disk < SIZE


@pytest.fixture
def small_disk(root: Path) -> Iterator[int]:
    """The store on a file system of its own, of 120 MB."""
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120m", "tmpfs", str(root)], check=True)
    yield 120 << 20
    subprocess.run(["umount", "-l", str(root)], check=True)


def fill(file: BufferedWriter) -> None:
    while True:
        file.write(bytes(1 << 20))
        file.flush()


@pytest.mark.root
def test_a_disk_that_fills_up_on_the_way_ends_the_fetch_and_room_lets_it_go_on(
    tmp_path: Path, root: Path, small_disk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_hub(tiny_model(tmp_path / "smaller", size=8 * CHUNK)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        wanted = given(root, MODEL)
        hub.stalled = WEIGHTS
        raised: list[BaseException] = []

        def run() -> None:
            try:
                fetch(wanted)
            except Permanent as error:
                raised.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        assert hub.stuck.wait(60)
        with (root / "somebody-elses").open("wb") as other:
            other.truncate(small_disk)
            other.seek(0)
            with pytest.raises(OSError, match="No space left"):
                fill(other)
        hub.stalled = ""
        hub.go_on.set()
        thread.join(60)
        assert "cannot be written" in str(raised[0])
        assert "No space left on device" in str(raised[0])
        assert models(root) == []
        (root / "somebody-elses").unlink()
        whole(fetch(wanted), hub.files)


def test_a_folder_that_may_not_be_written_is_named(hub: HuggingFaceHub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Permanent, match="cannot be written"):
        fetch(given(tmp_path / "file", MODEL))


def test_two_fetchers_of_one_model_move_it_once(hub: HuggingFaceHub, root: Path, tmp_path: Path) -> None:
    wanted = given(root, MODEL)
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    hub.stalled = "tokenizer.json"
    first = step(wanted, folders[0])
    assert hub.stuck.wait(60)
    second = step(wanted, folders[1])
    while "waiting for process" not in ((folders[1] / "out").read_text() if (folders[1] / "out").exists() else ""):
        assert second.poll() is None
    hub.stalled = ""
    hub.go_on.set()
    assert [first.wait(60), second.wait(60)] == [0, 0]
    results = [json.loads(json.loads((folder / "out").read_text().splitlines()[-1])["result"]) for folder in folders]
    assert [results[0]["fetched_bytes"] > 0, results[1]["fetched_bytes"]] == [True, 0]
