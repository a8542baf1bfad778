"""A model's folder has one fetcher: a dead one cannot keep it, a living one can, and who
was thought dead can do no more harm.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from model_delivery.models.manifest import WORK
from model_delivery.models.store.workspace import DEAD_AFTER, FREE, alone, held

HOLD = """
import sys, time
from pathlib import Path
from model_delivery.models.store.workspace import alone
with alone(Path(sys.argv[1]), print):
    print("mine", flush=True)
    time.sleep(600)
"""


NOTES = "5 x 8388608\n\n0 0\n"


@pytest.fixture
def holder(tmp_path: Path) -> Callable[[], subprocess.Popen[str]]:
    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "mine\n"
        return process

    return start


@contextmanager
def at_work(folder: Path, name: str, sign: str | None) -> Iterator[Path]:
    work = folder / WORK / name
    work.mkdir(parents=True)
    (work / "begun.part").write_bytes(b"bytes")
    (work / "begun.chunks").write_text(NOTES)
    if sign is not None:
        (work / f"{name}.json").write_text(sign)
    yield work


def test_whoever_is_killed_loses_it_at_once(tmp_path: Path, holder: Callable[[], subprocess.Popen[str]]) -> None:
    with holder() as process:
        assert held(tmp_path)
        process.kill()
    assert not held(tmp_path)
    with alone(tmp_path, pytest.fail) as work:
        assert work.ours()
    assert [path.name for path in (tmp_path / WORK).iterdir()] == [FREE]


def test_a_living_holder_is_waited_for_and_named(tmp_path: Path, holder: Callable[[], subprocess.Popen[str]]) -> None:
    heard: list[str] = []
    with holder() as process:

        def hear(who: str) -> None:
            heard.append(who)
            process.kill()
            process.wait()

        with alone(tmp_path, hear) as work:
            assert work.ours()
        assert heard[0].startswith(f"process {process.pid} on ")


@pytest.mark.parametrize(
    "sign",
    [json.dumps({"pid": 1, "start": "1", "space": "another boot", "host": "node-2\r\x1b[2J"}), "", "{cut", "[]", None],
)
def test_a_holder_of_another_machine_that_gives_no_sign_is_taken_over(tmp_path: Path, sign: str | None) -> None:
    heard: list[str] = []
    with at_work(tmp_path, "0" * 32, sign) as old, alone(tmp_path, heard.append) as work:
        assert work.ours()
        assert not old.exists()
        assert (work.path / "begun.part").read_bytes() == b"bytes"
    assert heard == ["a process on an unknown machine"]
    assert DEAD_AFTER <= 15


def test_what_was_taken_from_a_stopped_fetcher_is_another_file(
    tmp_path: Path, holder: Callable[[], subprocess.Popen[str]]
) -> None:
    with holder() as process:
        (work,) = (tmp_path / WORK).iterdir()
        (work / "begun.part").write_bytes(b"bytes")
        (work / "begun.chunks").write_text(NOTES)
        os.kill(process.pid, signal.SIGSTOP)
        with (work / "begun.part").open("r+b") as kept_open, alone(tmp_path, lambda _: None) as ours:
            kept_open.write(b"BYTES")
            kept_open.flush()
            assert (ours.path / "begun.part").read_bytes() == b"bytes"
            assert (ours.path / "begun.chunks").read_text() == NOTES
            os.kill(process.pid, signal.SIGCONT)
            process.terminate()
            process.wait()
            assert ours.ours()


def test_who_was_thought_dead_moves_nothing_in_or_out(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("verified")
    with alone(tmp_path, pytest.fail) as work:
        work.path.rename(work.path.with_name("another"))
        assert not work.ours()
        with pytest.raises(FileNotFoundError):
            work.discard(tmp_path / "weights")
    assert (tmp_path / "weights").read_text() == "verified"
    assert [path.name for path in (tmp_path / WORK).iterdir()] == ["another"]


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim" / "thesis").mkdir(parents=True)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / WORK).symlink_to(tmp_path / "victim")
    with alone(tmp_path / "model", pytest.fail) as work:
        assert work.ours()
    assert [path.name for path in (tmp_path / "victim").iterdir()] == ["thesis"]
