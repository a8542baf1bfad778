"""What a release takes of GPUs: how many, and how much of each one's memory. It is the
engine's own arguments that say so, where the limits do not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from model_delivery.values.serving import option

VISIBLE = "CUDA_VISIBLE_DEVICES"
SHARE, DEFAULT_SHARE = "--gpu-memory-utilization", 0.92  # of vLLM 0.26, as engines/vllm/uv.lock has it; before: 0.9
RANKS = {
    "--tensor-parallel-size": "-tp",
    "--pipeline-parallel-size": "-pp",
    "--prefill-context-parallel-size": "-pcp",
    "--data-parallel-size": "-dp",
}
SEVERAL_HOSTS = {"--nnodes": "-n", "--data-parallel-size-local": "-dpl"}


@dataclass(frozen=True)
class Card:
    """A GPU of a release that runs: ``share`` of its memory in percent (None: an older
    version bound it whole), ``bytes`` that the release's processes hold there (None: the
    driver does not say).
    """

    index: int
    share: float | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class Wanted:
    """So many GPUs, and ``share`` (0 to 1) of the memory of each."""

    count: int = 0
    share: float = DEFAULT_SHARE


def wanted(payload: Mapping[str, Any]) -> Wanted:
    """What an engine on a host takes. Limits count before arguments; an engine for the
    CPU, or one that is told its GPUs in ``env``, takes what its limits say.
    """
    args, count = payload["args"], payload["gpus"]
    if not count and not _on_cpu(payload["engine"]) and VISIBLE not in payload["env"]:
        count = ranks(args) or int(bool(said(args, SHARE)))
    share = said(args, SHARE)
    asked = float(share) if re.fullmatch(r"[0-9]{0,9}\.?[0-9]{1,18}", share) else 0
    return Wanted(count, asked if 0 < asked <= 1 else DEFAULT_SHARE)


def ranks(args: Sequence[str]) -> int:
    """The GPUs that ``args`` spread the model over; 0 where they do not say it, or spread
    it over several hosts.
    """
    if any(said(args, *names) for names in SEVERAL_HOSTS.items()):
        return 0
    sizes = [size for names in RANKS.items() if re.fullmatch("[0-9]{1,4}", size := said(args, *names))]
    return prod(map(int, sizes)) if sizes else 0


def said(args: Sequence[str], name: str, letters: str = "") -> str:
    """The value of an option as the engine's parser takes it: the last one, by any
    beginning of its name; empty where it is not given.
    """
    found = ""
    for word, after in zip(args, [*args[1:], ""], strict=False):
        given, inline, value = word.partition("=")
        long = option(word)
        begun = bool(long) and name.startswith(long) and long not in {*RANKS, *SEVERAL_HOSTS} - {name}
        if begun or (letters and given == letters):
            found = value if inline else after
    return found


def _on_cpu(engine: Mapping[str, Any]) -> bool:
    backend = (engine.get("environment") or {}).get("torch_backend")
    return backend == "cpu" or any(name.startswith("VLLM_CPU_") for name in engine.get("variables", {}))
