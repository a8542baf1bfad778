"""A start as its user sees it: told while it goes on, kept with its release, and what the
next one is measured by.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from model_delivery.values import Phase
from tests.parts.ports import free_port
from tests.parts.timing_engine import engine_folder
from tests.unit.test_cli import DELIVER, deliver, environment
from tests.unit.test_starting import START

ENGINE = """
import os, sys
from pathlib import Path
here = Path(__file__).parent
with open(here / "lines") as lines:
    for line in lines:
        print(line, end="", flush=True)
os.execv(here / "timing-server", [str(here / "timing-server"), *sys.argv[1:]])
"""
LOGGED = (Phase.WEIGHTS, Phase.COMPILED, Phase.WARM)
COMPILED = "(EngineCore pid=3) INFO 11-23 15:40:18 [monitor.py:53] torch.compile took 3.22 s in total"
LINES = (
    (START[5].strip(), "the weights are loaded, file 3 of 6"),
    (START[6], "the weights are in memory"),
    (COMPILED, "memory is laid out"),
    (START[10], "its kernels are warmed up"),
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """The stand-in engine, which prints what comes by the pipe ``lines``, and serves once
    that is closed.
    """
    made = engine_folder(tmp_path / "engine")
    (made / "engine.py").write_text(ENGINE)
    toml = (made / "engine.toml").read_text()
    command = f'command = ["{sys.executable}", "{{folder}}/engine.py", '
    (made / "engine.toml").write_text(toml.replace('command = [\n    "{folder}/timing-server", ', command))
    os.mkfifo(made / "lines")
    return made


def spec(engine: Path, model: Path, port: int, label: str) -> Path:
    file = engine.parent / "spec.yaml"
    file.write_text(
        f"apiVersion: model-delivery/v1\nname: small\nmodel: {{source: local, path: {model}}}\n"
        f"serving: {{args: [--label, {label}]}}\n"
        f"target: {{kind: process, engine: {engine}, port: {port}}}\n"
        "gates: {smoke: {max_tokens: 16}, throughput: null}\nrollout: {watch: 0s, standby: 0s}\n"
    )
    return file


class Up:
    """``deliver up`` while it runs."""

    def __init__(self, home: Path, file: Path) -> None:
        self.told: list[str] = []
        self.process = subprocess.Popen(
            [str(DELIVER), "up", str(file)],
            env=environment(home),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def until(self, words: str) -> str:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.told.append(line)
            if words in line:
                return line
        raise AssertionError(f"{words!r} is not told: {shlex.join(self.told)}")

    def end(self) -> None:
        assert self.process.stderr is not None
        self.told += self.process.stderr
        assert self.process.wait() == 0, self.told


@contextmanager
def started(home: Path, file: Path) -> Iterator[tuple[Up, Any]]:
    """Its run, and the pipe whose lines its engine prints."""
    up = Up(home, file)
    try:
        up.until("the engine is starting")
        with (file.parent / "engine" / "lines").open("w", buffering=1) as lines:
            yield up, lines
        up.end()
    finally:
        up.process.kill()
        up.process.wait()


def kept(home: Path) -> dict[str, float]:
    done = deliver(home, "history", "small", "--json")
    assert done.returncode == 0, done.stderr
    told: dict[str, float] = json.loads(done.stdout)[-1]["starts"]
    return told


def test_a_start_is_told_by_its_phases_kept_with_its_release_and_the_measure_of_the_next(
    home: Path, model: Path, engine: Path
) -> None:
    port = free_port()
    file = spec(engine, model, port, "one")
    try:
        with started(home, file) as (up, lines):
            for line, words in LINES:
                lines.write(f"{line}\n")
                assert "s left" not in up.until(f"the engine is starting: {words}")
            now = deliver(home, "status", "small")
            assert "its start: process up 0.0 s, weights, compiled, warmed up\n" in now.stdout
        told = "".join(up.told)
        assert "start: process up 0.0 s, weights " in told, told
        starts = kept(home)
        assert [*starts] == [Phase.PROCESS, *LOGGED, Phase.HEALTHY, Phase.ANSWERED]
        assert [*starts.values()] == sorted(starts.values())
        [line] = [one for one in deliver(home, "history", "small", "--starts").stdout.splitlines() if "started:" in one]
        assert f"first token {starts['first token']:.1f} s" in line
        assert "started:" not in deliver(home, "history", "small").stdout
        assert (
            f"its start: process up 0.0 s, weights {starts['weights']:.1f} s" in deliver(home, "status", "small").stdout
        )

        slow = home / "deliveries" / "small" / "objects" / "Record" / "record.json"
        record = json.loads(slow.read_text())
        record["spec"]["ended"][-1]["starts"] = {"process up": 0.0, "healthy": 1000.0}
        slow.write_text(json.dumps(record))
        with started(home, spec(engine, model, port, "two")) as (up, lines):
            assert "of at most 3000 s, " in up.told[-1]
            lines.write(f"{START[6]}\n")
            left = up.until("the weights are in memory").rpartition(", ")[2]
            assert left.endswith(" s left\n")
            assert 0 < float(left.split()[0]) <= 1000
            now = deliver(home, "status", "small")
            assert "its start: process up 0.0 s, weights; the last one of the same: " in now.stdout
        assert Phase.COMPILED not in kept(home)
    finally:
        assert deliver(home, "down", "small").returncode == 0


def test_of_an_engine_that_says_nothing_no_phase_is_invented(home: Path, model: Path, engine: Path) -> None:
    try:
        with started(home, spec(engine, model, free_port(), "one")) as (up, lines):
            lines.write("(APIServer pid=1) INFO 11-27 17:31:00 [logger.py:40] prompt: 'Model loading took 1 GiB'\n")
        assert [*kept(home)] == [Phase.PROCESS, Phase.HEALTHY, Phase.ANSWERED]
        assert not any("the engine is starting:" in line for line in up.told)
    finally:
        assert deliver(home, "down", "small").returncode == 0
