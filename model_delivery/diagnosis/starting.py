"""How far an engine's start is, in words: the last milestone that its log tells."""

from __future__ import annotations

import re

from model_delivery.diagnosis.engine_log import last_line
from model_delivery.diagnosis.log_lines import read
from model_delivery.values import InProgress

# Lines of vLLM 0.18 to 0.32; a row's words may use its groups. What no row knows is no
# progress.
MILESTONES = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (r"^non-default args: ", "its configuration is read"),
        (r"^Initializing a V\d+ LLM engine", "its core begins"),
        (r"^Starting to load model|^Loading model from scratch", "the weights are loaded"),
        (r"^(?:Loading|Multi-thread loading) .*shards.*\| (\d+)/(\d+) \[", r"the weights are loaded, file \1 of \2"),
        (r"^Loading weights took|^Model loading took", "the weights are in memory"),
        (r"^Using cache directory: .*torch\.compile|Dynamo bytecode transform time", "the model is compiled"),
        (r"^torch\.compile (?:took|takes)|^Available KV cache memory|KV cache size: ", "memory is laid out"),
        (r"^Capturing CUDA graphs.*\| *(\d+)/(\d+) \[", r"CUDA graphs are captured, \1 of \2"),
        (r"^Graph capturing finished", "its kernels are warmed up"),
        (r"^init engine .* took", "its core is ready"),
        (r"^Starting vLLM (?:API )?server|^Application startup complete", "its server opens the port"),
    )
)


def starting(log: str) -> InProgress:
    """``log``: its tail. The last line is kept as what a deadline shows."""
    found = "is starting"
    for line in read(log):
        for pattern, words in MILESTONES:
            if match := pattern.search(line.text):
                found = f"is starting: {match.expand(words)}"
    return InProgress(f"the engine {found}", last=last_line(log))
