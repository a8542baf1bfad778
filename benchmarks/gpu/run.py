"""The same workload by this harness and by ``vllm bench serve`` on one vLLM, the
server's own histograms beside them: one table.

On any host where vLLM can be imported (``PYTHONPATH``), with Locust, pydantic, PyYAML
and psutil; no network and no weights::

    python3 benchmarks/gpu/run.py --out RESULTS [--users 16,64,256]
        [--url http://127.0.0.1:8000 --model-folder DIR]

Without --url it makes the model, starts vLLM on it (dummy weights, no prefix caching),
and stops it at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent), str(ROOT / "benchmarks")]

from arithmetic import HISTOGRAMS, Buckets, Row, between, buckets, quantile, table  # noqa: E402
from processes import watched  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from model_delivery.measure.metrics import TALLY  # noqa: E402

OUTPUT, ROUNDS, LIMIT, START = 128, 6, 300.0, 400.0
SERVE = ("--load-format", "dummy", "--served-model-name", "m", "--max-model-len", "4096", "--no-enable-prefix-caching")
OFFLINE = {
    "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0", "PYTHONUNBUFFERED": "1",
}  # fmt: skip


def environ() -> dict[str, str]:
    return os.environ | OFFLINE | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


@contextmanager
def served(model: Path, out: Path, extra: list[str]) -> Iterator[str]:
    """VLLM on ``model``, in a session of its own, stopped with all of its processes at
    the end. RuntimeError when it does not become healthy.
    """
    url = "http://127.0.0.1:8000"
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(model),
        "--host",
        "127.0.0.1",
        "--port",
        "8000",
    ]
    with (out / "server.log").open("wb") as log:
        child = subprocess.Popen(
            [*command, *SERVE, *extra], env=environ(), stdout=log, stderr=log, start_new_session=True
        )
    try:
        start = time.monotonic()
        while not healthy(url):
            if child.poll() is not None or time.monotonic() - start > START:
                raise RuntimeError(
                    f"vLLM is not healthy after {time.monotonic() - start:.0f} s:\n{(out / 'server.log').read_text()[-3000:]}"
                )
            time.sleep(1)
        print(f"healthy after {time.monotonic() - start:.0f} s", flush=True)
        yield url
    finally:
        os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)


def get(url: str) -> str:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as answer:
        return str(answer.read().decode())


def healthy(url: str) -> bool:
    try:
        get(f"{url}/health")
    except OSError:
        return False
    return True


def samples(url: str) -> list[tuple[str, Mapping[str, str], float]]:
    families = text_string_to_metric_families(get(f"{url}/metrics"))
    return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]


def histograms(url: str) -> dict[str, Buckets]:
    seen = samples(url)
    return {key: buckets(seen, name) for key, name in HISTOGRAMS.items()}


def busy(url: str) -> bool:
    return any(value for name, _, value in samples(url) if name == "vllm:num_requests_running")


def ours(url: str, model: Path, users: int, requests: int, out: Path) -> tuple[list[str], Path]:
    prompts = (model / "prompts.jsonl").read_text(encoding="utf-8").splitlines()[:requests]
    profile = {"prompts": prompts, "output_tokens": OUTPUT, "ignore_eos": True, "max_requests": requests}
    plan = {
        "model": "m",
        "profile": profile,
        "users": users,
        "rate": None,
        "warmup": 0,
        "duration": LIMIT,
        "seed": 1,
        "processes": 1,
    }
    (out / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "locust",
        "-f",
        str(ROOT / "loadtests" / "user.py"),
        "--headless",
        "--only-summary",
        "--exit-code-on-error",
        "0",
        "--host",
        url,
    ]
    command += [
        "--users",
        str(users),
        "--spawn-rate",
        str(users),
        "--plan",
        str(out / "plan.json"),
        "--tally",
        str(out / "tally.json"),
    ]
    return command, out / "tally.json"


def bench(url: str, model: Path, users: int, requests: int, out: Path) -> tuple[list[str], Path]:
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "loadtest" / "vllm_bench.py"),
        "--backend",
        "openai-chat",
        "--base-url",
        url,
    ]
    command += [
        "--endpoint",
        "/v1/chat/completions",
        "--model",
        "m",
        "--tokenizer",
        str(model),
        "--dataset-name",
        "custom",
        "--ignore-eos",
    ]
    command += [
        "--dataset-path",
        str(model / "prompts.jsonl"),
        "--custom-output-len",
        str(OUTPUT),
        "--skip-chat-template",
        "--disable-tqdm",
    ]
    command += [
        "--num-prompts",
        str(requests),
        "--max-concurrency",
        str(users),
        "--save-result",
        "--result-dir",
        str(out),
    ]
    command += ["--percentile-metrics", "ttft,itl", "--metric-percentiles", "50,95", "--result-filename", "bench.json"]
    return command, out / "bench.json"


def told_by_ours(file: Path) -> tuple[int, float, dict[str, float]]:
    tally = TALLY.validate_json(file.read_bytes())
    told = {}
    for key in ("ttft", "itl"):
        p50, p95 = tally.histograms[key].percentiles((50, 95))
        told |= {f"{key}_p50": p50, f"{key}_p95": p95}
    return tally.counts["good"], 0.0, told


def told_by_bench(file: Path) -> tuple[int, float, dict[str, float]]:
    said = json.loads(file.read_bytes())
    told = {f"{key}_p{p}": said[f"p{p}_{key}_ms"] for key in ("ttft", "itl") for p in (50, 95)}
    return said["completed"], said["output_throughput"], told


TOOLS: dict[str, tuple[Any, Any]] = {"this harness": (ours, told_by_ours), "vllm bench serve": (bench, told_by_bench)}


def measured(tool: str, url: str, model: Path, users: int, out: Path) -> Row:
    """One load by one tool. RuntimeError with the end of its log when it fails."""
    make, read = TOOLS[tool]
    command, file = make(url, model, users, ROUNDS * users, out)
    file.unlink(missing_ok=True)
    before, start = histograms(url), 0.0

    def began() -> bool:
        nonlocal start
        start = start or (time.monotonic() if busy(url) else 0.0)
        return bool(start)

    log = out / f"{tool.replace(' ', '-')}-{users}.log"
    with log.open("wb") as sink:
        child = subprocess.Popen(command, env=environ(), stdin=subprocess.DEVNULL, stdout=sink, stderr=sink)
        cpu = watched(child, began, LIMIT)
    if child.returncode or not file.exists():
        raise RuntimeError(f"{tool} ended with {child.returncode}: {log.read_text(errors='replace')[-2000:]}")
    own = {key: between(before[key], after) for key, after in histograms(url).items()}
    server = {
        f"{key}_p{p}": value for key in own for p in (50, 95) if (value := quantile(own[key], p / 100)) is not None
    }
    good, rate, told = read(file)
    if not rate:
        tally = TALLY.validate_json(file.read_bytes())
        rate = tally.tokens / max(tally.seconds)
    return Row(users, tool, good, rate, told, server, cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--users", default="16,64,256")
    parser.add_argument("--url", help="A server that runs already, with --model-folder.")
    parser.add_argument("--model-folder", type=Path, default=Path("/tmp/gpu-benchmark-model"))
    parser.add_argument("--serve-args", default="", help="More arguments for vLLM, separated by spaces.")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if not (given.model_folder / "prompts.jsonl").exists():
        subprocess.run(
            [sys.executable, Path(__file__).with_name("model.py"), given.model_folder], check=True, env=environ()
        )
    if given.url:
        load(given.url.rstrip("/"), given)
        return
    with served(given.model_folder, given.out, given.serve_args.split()) as url:
        load(url, given)


def load(url: str, given: argparse.Namespace) -> None:
    """Every tool at every number of users, after a warm-up; the results are written after
    each.
    """
    measured("this harness", url, given.model_folder, 16, given.out)
    rows: list[Row] = []
    for users in map(int, given.users.split(",")):
        for tool in TOOLS:
            rows.append(measured(tool, url, given.model_folder, users, given.out))
            facts = f"7B shape, dummy weights, 256 tokens in, {OUTPUT} out, closed loop; {device()}; vLLM {json.loads(get(f'{url}/version'))['version']}; "
            facts += datetime.now(tz=UTC).strftime("%Y-%m-%d")
            note = "Latencies in ms; in brackets what the server's own histogram says of the same time. CPU from the first request on."
            (given.out / "gpu.md").write_text(f"{facts}\n\n{table(rows)}\n\n{note}\n", encoding="utf-8")
            (given.out / "gpu.json").write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")
            print(table(rows).splitlines()[-1], flush=True)


def device() -> str:
    asked = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip().splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "no NVIDIA GPU"


if __name__ == "__main__":
    main()
