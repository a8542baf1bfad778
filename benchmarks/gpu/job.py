"""The main job on a GPU, by specs and the ``deliver`` command alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from arithmetic import kv_space, phases
from generators import MODEL, asked_once
from machine import ROOT, Machine, Told, deliver

from scripts.offline_model import CONVERT

SMALL, LARGE = "smollm2", "codellama-7b"
PORTS = {SMALL: 8001, LARGE: 8002}
SHARES = {"first": 0.3, "second": 0.6}
TINY = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
LOG = {
    "available_kv_gib": r"Available KV cache memory: ([\d.]+) GiB",
    "kv_tokens": r"KV cache size: ([\d,]+) tokens",
    "weights_gib": r"Model loading took ([\d.]+) GiB",
    "weights_s": r"Loading weights took ([\d.]+) seconds",
    "compile_s": r"torch\.compile (?:took|takes) ([\d.]+) s",
    "graphs_gib": r"Graph capturing finished in .* took ([\d.]+) GiB",
    "engine_init_s": r"init engine .* took ([\d.]+) s",
}


def models(machine: Machine, packages: Path) -> dict[str, Any]:
    """Both models, each made once."""
    began = time.monotonic()
    make_large(machine)
    between = time.monotonic()
    _small(machine, packages)
    seconds = {LARGE: round(between - began, 1), SMALL: round(time.monotonic() - between, 1)}
    return {"seconds": seconds, "bytes": {name: weights(machine.work / name) for name in seconds}}


def make_large(machine: Machine) -> None:
    """Random weights, and prompts of its own tokenizer."""
    folder, scripts = machine.work / LARGE, ROOT / "benchmarks" / "gpu"
    if not (folder / "prompts.jsonl").exists():
        _made(machine, str(scripts / "model.py"), str(folder), "256" if machine.rehearsal else "4096")
        if machine.rehearsal:
            config = folder / "config.json"
            config.write_text(json.dumps(json.loads(config.read_bytes()) | TINY), encoding="utf-8")
    _made(machine, str(scripts / "weights.py"), str(folder))


def _small(machine: Machine, packages: Path) -> None:
    """Converted from its package."""
    folder = machine.work / SMALL
    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _made(machine, "-c", CONVERT, str(packages), str(folder), PYTHONPATH=str(packages))


def _made(machine: Machine, *words: str, **environ: str) -> None:
    subprocess.run([machine.engine_python, *words], env=machine.engine_environ | environ, check=True, timeout=400)


def weights(folder: Path) -> int:
    """Bytes of its safetensors files."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@dataclass
class Service:
    """One delivery of this machine, whose card has ``total`` GiB. ``gpus``: cards that a
    release asks for (0: it sees them all, and its share is all that keeps it from
    others); ``whole``: it asks for every CPU, so that two have no room; ``env``: of its
    engine; ``measured``: how long its load test measures.
    """

    machine: Machine
    name: str
    total: float
    served: dict[str, str] = field(default_factory=dict)
    rollout: dict[str, Any] = field(default_factory=dict)
    gpus: int = 0
    whole: bool = False
    env: dict[str, str] = field(default_factory=dict)
    measured: str = "12s"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{PORTS[self.name]}"

    @property
    def model(self) -> Path:
        return self.machine.work / self.name

    def spec(self, share: float, *args: str, ttft: str = "5s") -> Path:
        """Its file; ``share`` of the card's memory, as the engine is told; ``ttft``: what
        its p95 may be.
        """
        rehearsal, small = self.machine.rehearsal, self.name == SMALL
        words = [*args, "--max-model-len", "2048" if small or rehearsal else "4096", "--dtype", "bfloat16"]
        words += ["--enforce-eager"] if rehearsal else ["--gpu-memory-utilization", str(share)]
        bounds = {"error_rate_max": 0, "ttft_p95_max": "60s" if rehearsal and ttft == "5s" else ttft}
        cpus = len(os.sched_getaffinity(0)) if self.whole else 1 if rehearsal else 6
        limits = {"cpu": cpus} | ({"nvidia.com/gpu": self.gpus} if self.gpus else {})
        profile: Any = (
            "smoke" if small or rehearsal else {"prompt_tokens": 256, "output_tokens": 128, "ignore_eos": True}
        )
        load = {
            "profile": profile,
            "users": 2 if rehearsal else 16,
            "warmup": "2s",
            "duration": self.measured,
            "slo": bounds,
        }
        smoke = {
            "prompt": "What is the capital of France?",
            "expect": "Paris" if small else "e",
            "max_tokens": 32 if small else 12,
        }
        content = {
            "apiVersion": "model-delivery/v1",
            "name": self.name,
            "model": {"source": "local", "path": str(self.model)},
            "serving": {"model_names": [MODEL], "args": words, "resources": {"limits": limits}, "env": self.env},
            "target": {"kind": "process", "engine": f"{self.machine.engine()}/", "port": PORTS[self.name]},
            "gates": {"smoke": smoke, "throughput": load},
            "rollout": {"strategy": "blue-green", "watch": "0s", "standby": "30m", **self.rollout},
        }
        file = self.machine.out / f"{self.name}-{len(list(self.machine.out.glob(f'{self.name}-*.yaml'))) + 1}.yaml"
        file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return file

    def up(self, share: float, *args: str, limit: float) -> dict[str, Any]:
        """Deliver a release. What it came to, the seconds of each phase, and what the
        engine's log says of itself.
        """
        spec = self.spec(share, *args)
        told = deliver(self.machine, "up", str(spec), limit=limit)
        return self.came_to(told) | {"engine": self.engine_says(share)}

    def refused(self, share: float, *args: str, limit: float) -> dict[str, Any]:
        """Deliver what no bound can hold; what serves then, and what was said."""
        told = deliver(self.machine, "up", str(self.spec(share, *args, ttft="1ms")), limit=limit, code=4)
        said = [line for at, line in told.lines if "woken" in line or "serves" in line]
        return {"seconds": round(told.seconds, 1), "running": self.running(), "said": said[-3:]}

    def told(self) -> Any:
        return deliver(self.machine, "status", self.name, limit=60).value["running"]

    def back(self, *words: str, limit: float) -> dict[str, Any]:
        return self.came_to(deliver(self.machine, "rollback", self.name, *words, limit=limit))

    def came_to(self, told: Told) -> dict[str, Any]:
        seen = {key: told.value[key] for key in ("result", "release")}
        seen |= {"seconds": round(told.seconds, 1), "phases": phases(told.lines, told.seconds)}
        return seen | {"running": self.running(), "figures": self.figures(told.value["release"])}

    def running(self) -> dict[str, str]:
        """Share and state of each release; where each listens is noted."""
        now = deliver(self.machine, "status", self.name, limit=60).value["running"]
        up = [one for one in now if one["detail"].startswith("http://")]
        self.served |= {one["detail"].removeprefix("http://"): one["release"] for one in up}
        return {one["release"]: f"{one['share']} %, {one['state']}" for one in now}

    def figures(self, release: str) -> dict[str, float]:
        ended = deliver(self.machine, "history", self.name, limit=60).value
        return next(
            (dict(one["figures"]) for one in reversed(ended) if one["release"] == release and one["figures"]), {}
        )

    def engine_says(self, share: float) -> dict[str, Any]:
        """What vLLM reports, and what arithmetic says of its KV space before."""
        logs = sorted(
            (self.machine.work / "state" / "deliveries" / self.name / "logs").glob("*-*.log"),
            key=lambda path: path.stat().st_mtime,
        )
        text = logs[-1].read_text(errors="replace")
        said = {
            key: float(found[-1].replace(",", ""))
            for key, pattern in LOG.items()
            if (found := re.findall(pattern, text))
        }
        config = json.loads((self.model / "config.json").read_text(encoding="utf-8"))
        space, tokens = kv_space(config, weights(self.model), self.total, share)
        return said | {"share": share, "estimated_gib": round(space, 2), "estimated_tokens": tokens}

    def down(self) -> dict[str, Any]:
        told = deliver(self.machine, "down", self.name, limit=150)
        return {"seconds": round(told.seconds, 1), "stopped": told.value["stopped"]}


def verified(machine: Machine) -> dict[str, Any]:
    """Seconds and rate of reading every byte of the large model where it was fetched to,
    less what the command takes without.
    """
    models = machine.work / "state" / "models"
    folders = {file.parent for file in models.rglob("model-*.safetensors")}
    (folder,) = folders
    shallow = deliver(machine, "verify", str(folder), limit=120)
    deep = deliver(machine, "verify", str(folder), "--deep", limit=300)
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    spent = deep.seconds - shallow.seconds
    return {
        "bytes": size,
        "seconds": round(spent, 2),
        "command_s": round(shallow.seconds, 2),
        "gb_per_s": round(size / 1e9 / spent, 2),
    }


@dataclass
class Watcher:
    """One client that asks for one token after the other at the stable address, and
    notes which engine gave it.
    """

    url: str
    seen: list[tuple[float, str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        while not self.over.wait(0.05):
            try:
                by = asked_once(self.url)
                self.seen.append((time.monotonic(), by))
            except Exception as error:
                self.failed.append(f"{type(error).__name__}: {error}"[:200])

    @contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self.watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.over.set()
            thread.join(70)

    def first_after(self, began: float, address: str) -> float | None:
        """Seconds from ``began`` to the first token by ``address``."""
        return next((round(at - began, 2) for at, by in self.seen if at >= began and by == address), None)


def address_of(service: Service, release: str) -> str:
    """Where the release was last seen to listen."""
    return next(address for address, known in reversed(service.served.items()) if known == release)
