"""The lock of a model's folder: a dead holder cannot keep it, a living one can."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from model_delivery.models.store.lock import DEAD_AFTER, alone, held

HOLD = """
import sys, time
from pathlib import Path
from model_delivery.models.store.lock import alone
with alone(Path(sys.argv[1]), print):
    print("mine", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Callable[[], subprocess.Popen[str]]:
    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "mine\n"
        return process

    return start


def test_whoever_is_killed_loses_it_at_once(tmp_path: Path, holder: Callable[[], subprocess.Popen[str]]) -> None:
    with holder() as process:
        assert held(tmp_path / "lock")
        process.kill()
    assert not held(tmp_path / "lock")
    with alone(tmp_path / "lock", pytest.fail) as ours:
        assert ours()
    assert list(tmp_path.iterdir()) == []


def test_a_living_holder_is_waited_for_and_named(tmp_path: Path, holder: Callable[[], subprocess.Popen[str]]) -> None:
    heard: list[str] = []
    with holder() as process:

        def hear(who: str) -> None:
            heard.append(who)
            process.kill()
            process.wait()

        with alone(tmp_path / "lock", hear) as ours:
            assert ours()
        assert heard[0].startswith(f"process {process.pid} on ")


@pytest.mark.parametrize(
    "content",
    [json.dumps({"holder": "x", "pid": 1, "start": "1", "space": "another boot", "host": "node-2"}), "", "{cut"],
)
def test_a_lock_of_another_machine_that_beats_no_more_is_taken_over(tmp_path: Path, content: str) -> None:
    (tmp_path / "lock").write_text(content)
    heard: list[str] = []
    with alone(tmp_path / "lock", heard.append) as ours:
        assert ours()
    assert len(heard) == 1
    assert DEAD_AFTER <= 15


def test_who_was_thought_dead_learns_that_it_is_no_longer_alone(tmp_path: Path) -> None:
    with alone(tmp_path / "lock", pytest.fail) as ours:
        (tmp_path / "lock").write_text(json.dumps({"holder": "another"}))
        assert not ours()
    assert json.loads((tmp_path / "lock").read_text()) == {"holder": "another"}
