"""Promotions and rollbacks on this host under a steady open loop at the stable address,
without retries; prints a table, and fails where a request did.

    PYTHONPATH=. .venv/bin/python benchmarks/rollouts/run.py [--times 20] [--rate 8]

The real ``deliver`` command and router, the tests' stand-in engine (20 ms a token, 128
tokens a stream). After every second promotion the old release stands by, so that the
rollback finds it up; after the others it is stopped under load, and starts anew.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

sys.path[:0] = [str(Path(__file__).parents[1] / "gpu"), str(Path(__file__).parents[1])]

from generators import MODEL, samples, traffic  # noqa: E402
from machine import Machine, deliver  # noqa: E402

from tests.parts.ports import own_port  # noqa: E402
from tests.parts.timing_engine import engine_folder  # noqa: E402
from tests.parts.tiny_model import tiny_model  # noqa: E402

NAME, TOKENS, LIMIT = "small", 128, 120.0
BEFORE_AN_ANSWER = ("status ", "connection: ", "no answer", "timeout")


@dataclass
class Bench:
    machine: Machine
    port: int
    made: int = 0
    open_across: list[int] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def promote(self, *, standby: bool) -> None:
        """A release that differs by its label."""
        self.made += 1
        content = {
            "apiVersion": "model-delivery/v1",
            "name": NAME,
            "model": {"source": "local", "path": str(self.machine.work / "model")},
            "serving": {
                "model_names": [MODEL],
                "args": ["--label", f"r{self.made}", "--ttft", "50", "--itl", "20"],
            },
            "target": {"kind": "process", "engine": str(self.machine.work / "engine"), "port": self.port},
            "gates": {"smoke": {"max_tokens": 16}, "throughput": None},
            "rollout": {"strategy": "blue-green", "watch": "0s", "standby": "30m" if standby else "0s"},
        }
        file = self.machine.work / "spec.yaml"
        file.write_text(yaml.safe_dump(content), encoding="utf-8")
        self.timed("promotion", "promoted", "up", str(file))

    def back(self, *, standby: bool) -> None:
        self.timed("rollback to a standby" if standby else "rollback, cold", "rolled back to", "rollback", NAME)

    def timed(self, what: str, result: str, *words: str) -> None:
        told = deliver(self.machine, *words, limit=LIMIT)
        if told.value["result"] != result:
            raise RuntimeError(f"deliver {' '.join(words)}: {told.value}")
        self.seconds.setdefault(what, []).append(told.seconds)

    def routed(self) -> str:
        """The address in the router's last slot, which moves last."""
        slots = sorted((self.machine.work / "state" / "deliveries" / NAME / "slots").glob("[0-9][0-9]"))
        return slots[-1].read_text() if slots else ""

    @contextmanager
    def switches_seen(self) -> Iterator[None]:
        """How many streams the engine that was left still had, whenever the router's last
        slot had moved.
        """
        over = threading.Event()

        def look() -> None:
            last = self.routed()
            while not over.wait(0.02):
                now = self.routed()
                if now and last and now != last:
                    with suppress(OSError):  # it has gone already
                        self.open_across.append(running(last))
                last = now or last

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def running(address: str) -> int:
    return sum(
        int(value) for name, _, value in samples(f"http://{address}") if name.startswith("vllm:num_requests_running")
    )


def table(of: Bench, counted: dict[str, Any]) -> str:
    broken = sum(count for kind, count in counted["errors"].items() if not kind.startswith(BEFORE_AN_ANSWER))
    rows: list[tuple[str, object]] = [
        ("promotions", len(of.seconds["promotion"])),
        ("rollbacks", sum(len(spent) for what, spent in of.seconds.items() if what.startswith("rollback"))),
        ("seconds of load", f"{counted['seconds']:.0f}"),
        ("requests", counted["requests"]),
        ("good", counted["good"]),
        ("failed before an answer", counted["failed"] - broken),
        ("streams broken", broken),
        ("switches seen", len(of.open_across)),
        ("streams open across them, in all", sum(of.open_across)),
        (
            "streams open across one, fewest and most",
            f"{min(of.open_across, default=0)}, {max(of.open_across, default=0)}",
        ),
    ]
    rows += [
        (f"seconds a {what} (min, median, max of {len(s)})", f"{min(s):.1f}, {statistics.median(s):.1f}, {max(s):.1f}")
        for what, s in of.seconds.items()
    ]
    return "\n".join(["| | |", "|---|--:|", *(f"| {name} | {value} |" for name, value in rows)])


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--times", type=int, default=20, help="Promotions, and rollbacks.")
    arguments.add_argument("--rate", type=float, default=8.0, help="Requests a second.")
    asked = arguments.parse_args()
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores, {asked.rate:g} requests/s\n", flush=True)
    with tempfile.TemporaryDirectory() as made:
        work = Path(made)
        model, of = tiny_model(work / "model"), Bench(Machine(work, work, "", "", rehearsal=False), own_port())
        (model / "prompts.jsonl").write_text('"Tell me a story."\n', encoding="utf-8")
        engine_folder(work / "engine")
        try:
            of.promote(standby=False)
            of.seconds.clear()
            with traffic(of.machine, of.url, model, asked.rate, TOKENS) as load, of.switches_seen():
                time.sleep(5)
                for number in range(asked.times):
                    of.promote(standby=number % 2 == 0)
                    of.back(standby=number % 2 == 0)
                time.sleep(3)
                load.stop()
        finally:
            deliver(of.machine, "down", NAME, limit=LIMIT)
    print(table(of, load.counted))
    for kind, count in load.counted["errors"].items():
        print(f"\n{count} × {kind}: {load.counted['said'].get(kind, '')}")
    sys.exit(load.counted["failed"] > 0 or load.counted["good"] != load.counted["requests"])


if __name__ == "__main__":
    main()
