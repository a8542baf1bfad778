"""Does the probe know an engine that stands still from one that is busy? On a real
engine: its core is stopped (SIGSTOP), quiet and under load; before, it is asked while it
is idle, while its queue is full and while it reads long prompts.

    silence.py --work DIR --out DIR --engine-python PYTHON [--engine-path DIR]

The arguments, and what comes of it, are those of ``run.py``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent), str(Path(__file__).parents[1])]

from generators import MODEL, asked_once, traffic  # noqa: E402
from job import LARGE, Service, make_large  # noqa: E402
from machine import deliver, get  # noqa: E402
from run import arguments, begun  # noqa: E402

ALARMS, PROBE_SECONDS = 5, 200.0
SHARE = 0.6


def probed(service: Service, code: int = 0) -> float:
    """Seconds that `deliver status --probe` took; it ends with ``code``, or RuntimeError
    says how it did.
    """
    return round(deliver(service.machine, "status", service.name, "--probe", limit=PROBE_SECONDS, code=code).seconds, 1)


def quiet_probes(service: Service) -> dict[str, Any]:
    """As many as shall raise no alarm, and what the engine counted meanwhile."""
    seconds = [probed(service) for _ in range(ALARMS)]
    return {"alarms": f"0 of {ALARMS}", "seconds": seconds, "engine": gauges(service)}


def gauges(service: Service) -> dict[str, float]:
    lines = get(f"{engine(service)}/metrics").splitlines()
    wanted = ("vllm:num_requests_running", "vllm:num_requests_waiting{")
    return {line.partition("{")[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(wanted)}


def running(service: Service) -> dict[str, Any]:
    now = deliver(service.machine, "status", service.name, limit=60).value
    found: dict[str, Any] = next(one for one in now["running"] if one["release"] == now["serving"])
    return found


def engine(service: Service) -> str:
    """The address of its own."""
    return str(running(service)["detail"])


@contextmanager
def long_prompts(service: Service, at_once: int, tokens: int) -> Iterator[None]:
    """So many requests, again and again, each of as many tokens as fit."""
    url, over = engine(service), False
    body = json.dumps({"model": MODEL, "prompt": [100] * tokens, "max_tokens": 4}).encode()

    def ask() -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while not over:
            request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})  # noqa: S310 our own address
            with opener.open(request, timeout=300) as answer:
                answer.read()

    with ThreadPoolExecutor(at_once) as pool:
        asking = [pool.submit(ask) for _ in range(at_once)]
        try:
            yield
        finally:
            over = True
        for one in asking:
            one.result()


def stopped(service: Service) -> dict[str, Any]:
    """Its core stands still: noticed by the probe, and healed by the next `up`."""
    children = psutil.Process(running(service)["pid"]).children(recursive=True)
    core = next(child for child in children if "EngineCore" in " ".join((child.name(), *child.cmdline())))
    url = engine(service)
    os.kill(core.pid, signal.SIGSTOP)
    with urllib.request.urlopen(f"{url}/health", timeout=20) as health:  # noqa: S310 our own address
        said = {"health": health.status, "status says": running(service)["state"], "engine": gauges(service)}
    noticed = probed(service, code=1)
    came = service.up(SHARE, limit=420)
    asked_once(service.url)
    return said | {
        "noticed, s": noticed,
        "result": came["result"],
        "healed, s": came["seconds"],
        "phases": came["phases"],
    }


def main() -> None:
    machine, results = begun(arguments(__doc__ or "").parse_args())
    service = Service(machine, LARGE, 0)
    with results.step("facts", 240) as came:
        came.update(machine.facts())
    with results.step("model", 300):
        make_large(machine)
    with results.step("first", 480) as came:
        came.update(service.up(SHARE, limit=450))
    with results.step("idle", 200) as came:
        came.update(quiet_probes(service))
    rate = 1.0 if machine.rehearsal else 300.0
    with results.step("full queue", 400) as came, traffic(machine, service.url, service.model, rate):
        time.sleep(10)
        came.update(quiet_probes(service))
    at_once, tokens = (2, 1500) if machine.rehearsal else (128, 4000)
    with results.step("long prompts", 400) as came, long_prompts(service, at_once, tokens):
        time.sleep(2)
        came.update(quiet_probes(service))
    with results.step("stopped, quiet", 600) as came:
        came.update(stopped(service))
    rate = 0.3 if machine.rehearsal else 8.0
    with results.step("stopped under load", 600) as came, traffic(machine, service.url, service.model, rate) as load:
        time.sleep(8)
        came.update(stopped(service))
        time.sleep(3)
        load.stop()
        came["traffic"] = load.counted
    with results.step("down", 160) as came:
        came.update(service.down())
    (machine.out / "done").touch()
    print(results.markdown())
    sys.exit(any("failed" in came for came in results.steps.values()))


if __name__ == "__main__":
    main()
