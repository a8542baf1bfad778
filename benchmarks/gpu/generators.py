"""The same workload by this harness and by ``vllm bench serve`` on one server, and the
open-loop load under which releases change: each a process whose CPU seconds are counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arithmetic import HISTOGRAMS, Buckets, Row, between, buckets, quantile
from machine import ROOT, Machine, get
from processes import watched
from prometheus_client.parser import text_string_to_metric_families

from model_delivery.measure.metrics import TALLY, Tally

MODEL, OUTPUT, LIMIT = "m", 128, 300.0
USER = ROOT / "loadtests" / "user.py"
Command = tuple[list[str], dict[str, str], Path]
Read = tuple[int, float, dict[str, float]]


@dataclass(frozen=True)
class Asked:
    """``users`` at once, ``requests`` in all, at ``url``; ``model``: the folder with
    tokenizer and prompts.
    """

    url: str
    model: Path
    users: int
    requests: int
    output: int = OUTPUT

    @property
    def prompts(self) -> list[str]:
        return (self.model / "prompts.jsonl").read_text(encoding="utf-8").splitlines()[: self.requests]


def ours(machine: Machine, asked: Asked) -> Command:
    profile = {
        "prompts": asked.prompts,
        "output_tokens": asked.output,
        "ignore_eos": True,
        "max_requests": asked.requests,
    }
    plan = {"profile": profile, "users": asked.users, "rate": None, "duration": LIMIT}
    return locust(machine, asked.url, "tally", asked.users, plan), machine.environ, machine.out / "tally.json"


def locust(machine: Machine, url: str, name: str, users: int, plan: Mapping[str, Any], file: Path = USER) -> list[str]:
    """The command of our own load generator, with its plan as the pipeline gives it."""
    whole = {"model": MODEL, "warmup": 0, "seed": 1, "processes": 1, **plan}
    (machine.out / f"{name}-plan.json").write_text(json.dumps(whole), encoding="utf-8")
    options = {"host": url, "users": users, "spawn-rate": users, "exit-code-on-error": 0}
    options |= {"plan": machine.out / f"{name}-plan.json", "tally": machine.out / f"{name}.json"}
    command = [
        sys.executable,
        "-m",
        "locust",
        "-f",
        str(file),
        "--headless",
        "--only-summary",
    ]
    return command + [f"--{key}={value}" for key, value in options.items()]


def bench(machine: Machine, asked: Asked) -> Command:
    options = {
        "backend": "openai-chat", "base-url": asked.url, "endpoint": "/v1/chat/completions", "model": MODEL, "tokenizer": asked.model,
        "dataset-name": "custom", "dataset-path": asked.model / "prompts.jsonl", "custom-output-len": asked.output,
        "num-prompts": asked.requests, "max-concurrency": asked.users, "percentile-metrics": "ttft,itl", "metric-percentiles": "50,95",
        "result-dir": machine.out, "result-filename": "bench.json",
    }  # fmt: skip
    command = [machine.engine_python, str(ROOT / "benchmarks" / "loadtest" / "vllm_bench.py")]
    command += [word for key, value in options.items() for word in (f"--{key}", str(value))]
    switches = ["--ignore-eos", "--skip-chat-template", "--disable-tqdm", "--save-result"]
    return [*command, *switches], machine.engine_environ, machine.out / "bench.json"


def told_by_ours(file: Path) -> Read:
    tally = TALLY.validate_json(file.read_bytes())
    return tally.counts["good"], tally.tokens / max(tally.seconds), spread(tally)


def spread(tally: Tally) -> dict[str, float]:
    """p50 and p95 of TTFT and ITL, in ms."""
    found = {key: tally.histograms[key].percentiles((50, 95)) for key in ("ttft", "itl")}
    return {f"{key}_p{p}": value for key, pair in found.items() for p, value in zip((50, 95), pair, strict=True)}


def told_by_bench(file: Path) -> Read:
    said = json.loads(file.read_bytes())
    told = {f"{key}_p{p}": said[f"p{p}_{key}_ms"] for key in ("ttft", "itl") for p in (50, 95)}
    return said["completed"], said["output_throughput"], told


Tool = tuple[Callable[[Machine, Asked], Command], Callable[[Path], Read]]
TOOLS: dict[str, Tool] = {"this harness": (ours, told_by_ours), "vllm bench serve": (bench, told_by_bench)}


def measured(tool: str, machine: Machine, asked: Asked) -> Row:
    """One load by one tool. RuntimeError with the end of its log when it fails."""
    make, read = TOOLS[tool]
    command, environ, file = make(machine, asked)
    file.unlink(missing_ok=True)
    before, log = histograms(asked.url), machine.out / f"{tool.replace(' ', '-')}.log"
    with log.open("wb") as sink:
        child = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
        try:
            cpu = watched(child, lambda: busy(asked.url), LIMIT)
        finally:
            child.kill()
    if child.returncode or not file.exists():
        raise RuntimeError(f"{tool} ended with {child.returncode}: {log.read_text(errors='replace')[-2000:]}")
    own = {key: between(before[key], after) for key, after in histograms(asked.url).items()}
    server = {
        f"{key}_p{p}": value for key in own for p in (50, 95) if (value := quantile(own[key], p / 100)) is not None
    }
    return Row(asked.users, tool, *read(file), server, cpu)


def samples(url: str) -> Iterator[tuple[str, Mapping[str, str], float]]:
    for family in text_string_to_metric_families(get(f"{url}/metrics")):
        yield from ((sample.name, sample.labels, sample.value) for sample in family.samples)


def histograms(url: str) -> dict[str, Buckets]:
    seen = list(samples(url))
    return {key: buckets(seen, name) for key, name in HISTOGRAMS.items()}


def busy(url: str) -> bool:
    return any(value for name, _, value in samples(url) if name == "vllm:num_requests_running")


class Traffic:
    """An open loop at ``url``, until it is stopped; what came of it is then in
    ``counted``.
    """

    def __init__(self, child: subprocess.Popen[bytes], tally: Path, until: Path) -> None:
        self.child, self.tally, self.until, self.counted = child, tally, until, dict[str, Any]()

    def stop(self, limit: float = 90) -> None:
        self.until.touch()
        self.child.wait(limit)
        tally = TALLY.validate_json(self.tally.read_bytes())
        counts = {key: tally.counts[key] for key in ("sent", "requests", "good")}
        failed = {"failed": tally.errors.total(), "errors": dict(tally.errors), "said": dict(tally.said)}
        self.counted = counts | failed | {"seconds": max(tally.seconds), **spread(tally)}


@contextmanager
def traffic(machine: Machine, url: str, model: Path, rate: float, output: int = OUTPUT) -> Iterator[Traffic]:
    """Requests at ``rate`` per second, whatever the earlier ones do."""
    profile = {"prompts": Asked(url, model, 1, 4096).prompts, "output_tokens": output, "ignore_eos": True}
    plan = {"profile": profile, "users": None, "rate": rate, "duration": 1700}
    command = locust(machine, url, "traffic", 1, plan, ROOT / "benchmarks" / "gpu" / "until.py")
    until = machine.out / "traffic-ends"
    until.unlink(missing_ok=True)
    environ = machine.environ | {"UNTIL": str(until)}
    with (machine.out / "traffic.log").open("wb") as log:
        child = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield Traffic(child, machine.out / "traffic.json", until)
    finally:
        child.kill()
        child.wait()


def compared(
    machine: Machine, url: str, model: Path, users: Sequence[int], rounds: int, until: float
) -> Iterator[list[Row]]:
    """Every tool at every number of users, in turn and then the other way round; the rows
    so far after each time, until ``until`` on the monotonic clock.
    """
    rows, per_user, output = list[Row](), 2 if machine.rehearsal else 4, 16 if machine.rehearsal else OUTPUT
    measured("this harness", machine, Asked(url, model, users[0], per_user * users[0], output))
    for number in range(rounds):
        for count in users:
            for tool in list(TOOLS)[:: -1 if number % 2 else 1]:
                if time.monotonic() > until:
                    return
                rows.append(measured(tool, machine, Asked(url, model, count, per_user * count, output)))
                yield rows


def asked_once(url: str) -> str:
    """The address of the engine that gave one token. OSError when none came."""
    body = json.dumps({"model": MODEL, "prompt": "The sun", "max_tokens": 1}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})  # noqa: S310 our own address
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        json.loads(answer.read())["choices"][0]
        return str(answer.headers["X-Model-Delivery-Served-By"])
