"""How far an engine's start is: in words, the last milestone that its log tells; and the
phases that it has come by, with their moments.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime

from model_delivery.diagnosis.engine_log import last_line
from model_delivery.diagnosis.log_lines import Line, read
from model_delivery.values import InProgress, Phase

# Lines of vLLM 0.18 to 0.32; a row's words may use its groups, its phase ends with it.
# What no row knows is no progress; a bar, which counts, needs no prefix.
MILESTONES = tuple(
    (re.compile(pattern), words, phase)
    for pattern, words, phase in (
        (r"^non-default args: ", "its configuration is read", None),
        (r"^Initializing a V\d+ LLM engine", "its core begins", None),
        (r"^Starting to load model|^Loading model from scratch", "the weights are loaded", None),
        (r"^(?:Multi-thread l|L)oading .*shards.*\| (\d+)/(\d+) \[", r"the weights are loaded, file \1 of \2", None),
        (r"^Loading weights took|^Model loading took", "the weights are in memory", Phase.WEIGHTS),
        (r"^Using cache directory: .*torch\.compile|^Dynamo bytecode transform time", "the model is compiled", None),
        (r"^torch\.compile (?:took|takes)", "memory is laid out", Phase.COMPILED),
        (r"^Available KV cache memory|^(?:\w+ )?KV cache size: ", "memory is laid out", None),
        (r"^Capturing CUDA graphs.*\| *(\d+)/(\d+) \[", r"CUDA graphs are captured, \1 of \2", None),
        (r"^Graph capturing finished", "its kernels are warmed up", Phase.WARM),
        (r"^init engine .* took", "its core is ready", Phase.WARM),
        (r"^Starting vLLM (?:API )?server|^Application startup complete", "its server opens the port", None),
    )
)


def starting(log: str) -> InProgress:
    """``log``: its tail. The last line is kept as what a deadline shows."""
    told = ["is starting", *(f"is starting: {words}" for _, words, _ in _milestones(log))]
    return InProgress(f"the engine {told[-1]}", last=last_line(log))


def passed(log: str) -> dict[Phase, float | None]:
    """The phases that the log tells of."""
    first = dict[Phase, float | None]()
    for line, _, phase in _milestones(log):
        if phase:
            first.setdefault(phase, moment_of(line.at))
    return first


def _milestones(log: str) -> Iterator[tuple[Line, str, Phase | None]]:
    for line in read(log):
        for pattern, words, phase in MILESTONES:
            if (line.quiet or pattern.groups) and (match := pattern.search(line.text)):
                yield line, match.expand(words), phase


def moment_of(told: object) -> float | None:
    """Seconds since the epoch, of a moment as Kubernetes writes one."""
    with suppress(ValueError):
        return datetime.fromisoformat(str(told)).timestamp()
    return None
