"""One table: what an engine's log says, what that means, and what to do. Seen in real logs of vLLM 0.26 to 0.33."""

from __future__ import annotations

import re
from dataclasses import dataclass

from delivery.findings import Finding


@dataclass(frozen=True)
class Sign:
    """``pattern`` is looked for in one line; its last match counts. ``retryable``: starting again may help."""

    pattern: re.Pattern[str]
    what: str
    fix: str
    retryable: bool = False


def _sign(pattern: str, what: str, fix: str, *, retryable: bool = False) -> Sign:
    return Sign(re.compile(pattern), what, fix, retryable)


SIGNS = (
    _sign(r"unrecognized arguments: ", "the engine does not know an argument", "correct serving.args: the name may be misspelt, or removed in this version"),
    _sign(r"error: argument .*: (invalid|expected)", "the engine refuses an argument's value", "correct serving.args"),
    _sign(
        r"Address already in use|address already in use", "the engine's port is taken", "run again: it will be given another port", retryable=True
    ),
    _sign(r"estimated maximum model length is (\d+)", "the KV cache cannot hold one request of max_model_len", "set --max-model-len to the length named below"),
    _sign(r"No available memory for the cache blocks", "no memory is left for the KV cache", "use a smaller model or dtype, more memory, or a higher --gpu-memory-utilization"),
    _sign(
        r"Free memory on device .* less than desired GPU memory utilization",
        "another process holds the GPU's memory",
        "end that process, or give each a share with --gpu-memory-utilization",
    ),
    _sign(r"release GPU memory while vLLM is profiling", "another engine stopped on the same GPU during the start", "run again", retryable=True),
    _sign(r"CUDA out of memory|OutOfMemoryError", "the GPU ran out of memory", "use a smaller model, dtype, --max-model-len or --max-num-seqs"),
    _sign(r"MemoryError|Cannot allocate memory|DefaultCPUAllocator: can't allocate", "the machine ran out of memory", "free memory, or use a smaller model"),
    _sign(r"Cannot find any model weights", "the model's folder has no weights", "check model.include and model.exclude: *.safetensors must be among the files"),
    _sign(r"incomplete metadata, file not fully covered|MetadataIncompleteBuffer", "a safetensors file is cut short", "fetch the model again: `deliver verify` finds the file"),
    _sign(r"header too large|HeaderTooLarge", "a weights file is not safetensors", "it may be a git-LFS pointer: fetch the real file"),
    _sign(r"appears path-like, but doesn't exist", "the chat template does not exist", "use serving.chat_template instead of an argument"),
    _sign(r"Invalid repository ID or local directory|contains a recognized configuration file", "the model has no configuration", "config.json must be among model.include"),
    _sign(r"Cannot find an appropriate cached snapshot", "the engine looked for a model on a hub", "an argument names a repository: give it a folder, or fetch it with the model"),
    _sign(r"is greater than the derived max_model_len", "--max-model-len is above what the model can", "lower --max-model-len"),
    _sign(r"is not supported for quantization|does not support float16|not support.*dtype", "the model does not run in this dtype", "set --dtype bfloat16, or what the line below names"),
    _sign(
        r"[Nn]o supported config format|architectures \[.*\] (are not supported|failed)|does not recognize this architecture",
        "the engine does not know the model's architecture",
        "use a newer engine, or another model",
    ),
    _sign(r"out of bounds for 0 devices|No CUDA GPUs are available|Failed to infer device type", "the engine sees no GPU", "ask for one: serving.resources.limits nvidia.com/gpu; check nvidia-smi"),
    _sign(r"World size \(\d+\) is larger than|set '--nnodes' appropriately", "more GPUs are asked for than there are", "lower --tensor-parallel-size, or raise nvidia.com/gpu"),
    _sign(r"EngineDeadError|EngineCore encountered an issue", "the engine's core died", "read the log above that line; run again if the machine was at fault", retryable=True),
)
EXCEPTION = re.compile(r"^(?:\((?P<who>\w+)[^)]*\) )?(?P<error>(?:\w+\.)*\w*(?:Error|Exception|Interrupt)): (?P<why>.*)$")
CORE = re.compile(r"^\(EngineCore")


def _find(log: str) -> tuple[Sign, str] | None:
    lines = log.splitlines()
    for sign in SIGNS:
        for line in reversed(lines):
            if sign.pattern.search(line):
                return sign, line
    return None


def diagnose(log: str, exit_code: int | None) -> Finding:
    """Why an engine that has ended did so: ``log`` is its tail, ``exit_code`` None when nobody saw it (negative: a signal)."""
    ended = {None: "it ended", 0: "it ended with exit code 0, which for a server is a failure"}.get(exit_code, f"it ended with exit code {exit_code}")
    found = _find(log)
    if found is not None:
        sign, line = found
        return Finding(f"the engine failed: {sign.what}", ended, sign.fix, (_short(line),))
    if exit_code == -9:
        return Finding("the engine was killed", "by SIGKILL, which is what the kernel does when memory runs out", "look at dmesg; ask for more memory, or use a smaller model")
    cause = _cause(log)
    return Finding("the engine failed", ended, "read its log", (_short(cause),) if cause else tuple(map(_short, log.splitlines()[-3:])))


def is_retryable(log: str, exit_code: int | None) -> bool:
    """May starting it again help?"""
    found = _find(log)
    return found is not None and found[0].retryable


def _cause(log: str) -> str | None:
    """The last exception of the engine's core, else of anybody; "see root cause above" is never the cause."""
    found = [line for line in log.splitlines() if EXCEPTION.match(line) and "See root cause above" not in line]
    core = [line for line in found if CORE.match(line)]
    return (core or found or [None])[-1]


def _short(line: str) -> str:
    return line.strip()[:300]
