"""One table: what an engine's log says, what that means, and what to do. Seen in real
logs of vLLM 0.26 (GPU) and 0.32 (CPU).
"""

from __future__ import annotations

import difflib
import re
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from model_delivery.base import Finding
from model_delivery.values import Failed

USAGE = 2  # the exit code for arguments that are refused
EVIDENCE_LINES = 5
EVIDENCE_WIDTH = 300


@dataclass(frozen=True)
class Sign:
    """A row of a table: by which words (a ``pattern``) a fault is known, what they mean,
    what to do. ``what`` and ``fix`` may use the groups of ``pattern`` (``\\1``).
    ``retryable``: starting again, as it stands, may help.
    """

    code: str
    pattern: str
    what: str
    fix: str
    retryable: bool = False


# Looked for in the lines that are no warnings. The first that is found counts: causes
# stand before what they lead to.
SIGNS = (
    Sign(
        "engine.unknown-argument",
        r"unrecognized arguments: (.*)",
        r"it does not know the argument \1",
        "correct serving.args: misspelt, or removed in this version",
    ),
    Sign(
        "engine.refused-argument",
        r"error: argument (\S+): (.*)",
        r"it refuses the argument \1: \2",
        "correct serving.args",
    ),
    Sign(
        "engine.port-taken",
        r"[Aa]ddress already in use",
        "its port is taken",
        "run again: it will be given another port",
        retryable=True,
    ),
    Sign(
        "engine.not-safetensors",
        r"parse_safetensors_file_metadata|header too large|HeaderTooLarge",
        "a weights file is not safetensors",
        "it may be a git-LFS pointer (a small text file): fetch the real file; `deliver verify` finds it",
    ),
    Sign(
        "engine.safetensors-cut",
        r"incomplete metadata, file not fully covered|MetadataIncompleteBuffer",
        "a safetensors file is cut short",
        "fetch the model again; `deliver verify` finds the file",
    ),
    Sign(
        "engine.no-weights",
        r"Cannot find any model weights",
        "the model's folder has no weights",
        "*.safetensors must be among model.include, and not in model.exclude",
    ),
    Sign(
        "engine.no-tokenizer",
        r"Couldn't instantiate the backend tokenizer|Can't load tokenizer",
        "the model's tokenizer is missing or incomplete",
        "tokenizer* and *.model must be among model.include",
    ),
    Sign(
        "engine.no-configuration",
        r"Invalid repository ID or local directory|contains a recognized configuration file",
        "the model has no configuration",
        "config.json must be among model.include",
    ),
    Sign(
        "engine.looked-on-a-hub",
        r"Cannot find an appropriate cached snapshot|couldn't connect to .* to load",
        "it looked for a model on a hub",
        "an argument names a repository: give it a folder, or fetch it with the model",
    ),
    Sign(
        "engine.no-model",
        r"HFValidationError: Repo id must be",
        "the model's folder does not exist",
        "fetch the model again",
    ),
    Sign(
        "engine.unknown-architecture",
        r"does not recognize this architecture|[Nn]o supported config format"
        r"|[Aa]rchitectures \[.*\] (?:are not supported|failed)",
        "it does not know the model's architecture",
        "use a newer engine, or another model",
    ),
    Sign(
        "engine.max-model-len",
        r"max_model_len \((\d+)\) is greater than the derived max_model_len "
        r"\((?:max_position_embeddings|model_max_length)=(\d+)",
        r"--max-model-len \1 is above the model's \2",
        r"use --max-model-len \2, or leave it out",
    ),
    Sign(
        "engine.max-model-len",
        r"is greater than the derived max_model_len",
        "--max-model-len is above what the model can",
        "lower it, or leave it out",
    ),
    Sign(
        "engine.cache-too-small",
        r"estimated maximum model length is (\d+)",
        "the KV cache cannot hold one request of full length",
        r"use --max-model-len \1 or less, or give it more memory",
    ),
    Sign(
        "engine.no-cache-memory",
        r"No available memory for the cache blocks",
        "no memory is left for the KV cache",
        "use a smaller model or dtype, or more memory",
    ),
    Sign(
        "engine.no-cache-memory",
        r"Available memory on node .* less than requested memory for kv",
        "the machine has too little free memory for the KV cache",
        "lower VLLM_CPU_KVCACHE_SPACE (GiB) in serving.env, or end what holds the memory",
    ),
    Sign(
        "engine.gpu-memory-held",
        r"Free memory on device .* less than desired GPU memory utilization",
        "another process holds the GPU's memory",
        "end that process, or give each a share with --gpu-memory-utilization",
    ),
    Sign(
        "engine.gpu-shared",
        r"release GPU memory while vLLM is profiling",
        "another engine stopped on its GPU meanwhile",
        "run again",
        retryable=True,
    ),
    Sign(
        "engine.gpu-out-of-memory",
        r"CUDA out of memory|OutOfMemoryError",
        "the GPU ran out of memory",
        "use a smaller model, dtype, --max-model-len or --max-num-seqs",
    ),
    Sign(
        "engine.out-of-memory",
        r"^MemoryError|Cannot allocate memory|DefaultCPUAllocator: (?:can't|not enough)|std::bad_alloc",
        "the machine ran out of memory",
        "free memory, ask for more in serving.resources.limits.memory, or use a smaller model",
    ),
    Sign(
        "engine.shared-memory",
        r"(\d+ MiB) required, (\d+ MiB) free",
        r"shared memory is too small: it needs \1, \2 are free",
        "give /dev/shm more room (a volume of medium Memory)",
    ),
    Sign(
        "engine.no-gpu",
        r"out of bounds for 0 devices|No CUDA GPUs are available|Failed to infer device type",
        "it sees no GPU",
        "ask for one in serving.resources.limits (nvidia.com/gpu), and check that nvidia-smi shows it",
    ),
    Sign(
        "engine.too-few-gpus",
        r"World size \(\d+\) is larger than|set '--nnodes' appropriately",
        "it was told to use more GPUs than there are",
        "lower --tensor-parallel-size, or raise nvidia.com/gpu",
    ),
    Sign(
        "engine.heads-indivisible",
        r"attention heads \((\d+)\) must be divisible by tensor parallel size \((\d+)\)",
        r"--tensor-parallel-size \2 does not divide the model's \1 heads",
        "choose one that does",
    ),
    Sign(
        "engine.no-chat-template",
        r"chat template .* appears path-like, but doesn't exist",
        "the chat template does not exist",
        "use serving.chat_template, not an argument",
    ),
    Sign(
        "engine.dtype",
        r"does not support float16|not support.*dtype",
        "the model does not run in this dtype",
        "set --dtype bfloat16, or what is named below",
    ),
    Sign(
        "engine.process-killed",
        r"died unexpectedly \(exit code: -9\)|Failed core proc.*: -9\b",
        "one of its processes was killed, as the kernel does when memory runs out",
        "look at dmesg; if it says out of memory, give it more, else run again",
        retryable=True,
    ),
    Sign(
        "engine.core-died",
        r"EngineDeadError",
        "its core died while it served",
        "read its log above the first line shown, then run again",
        retryable=True,
    ),
)
DEAD = SIGNS[-1]
PREFIX = re.compile(r"(?:\((?P<who>\w+)[^)]* pid=\d+\) ?)?(?:(?P<level>[A-Z]+) \d\d-\d\d [\d:]+ \[[^\]]*\] ?)?")
QUIET = ("DEBUG", "INFO", "WARNING")
EXCEPTION = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b(?:: .*)?$")
VALUE_ERROR = re.compile(r" +Value error, ")
EFFECT = "See root cause above"
FLAG = re.compile(r"--[a-z0-9][a-z0-9-]+")


@dataclass(frozen=True)
class _Line:
    who: str
    text: str


_Found = tuple[Sign, re.Match[str], tuple[str, ...]]


def diagnose(log: str, exit_code: int | None, *seen: str) -> Failed:
    """Why an engine that has ended did so: ``log`` is its tail, ``exit_code`` None when
    nobody saw it (negative: a signal).

    ``what`` names the cause, ``why`` how it ended, ``evidence`` the lines that say so (at
    most 5), then ``seen``. Retryable: starting it again, as it stands, may help; a
    SIGKILL of unknown origin does not count.
    """
    lines = list(_lines(log))
    found = _find(lines)
    finding = _finding(log, lines, found, exit_code)
    retryable = found is not None and found[0].retryable and exit_code != USAGE
    return Failed(replace(finding, evidence=(*finding.evidence, *seen)), retryable)


def _finding(log: str, lines: list[_Line], found: _Found | None, exit_code: int | None) -> Finding:
    why, last = _ended(exit_code), _evidence(line for line in log.splitlines()[-3:] if line.strip())
    if found is not None:
        known, match, evidence = found
        if known is DEAD:
            evidence = _evidence([_cause(lines), *evidence])
        fix = match.expand(known.fix) + _nearest(match[0], log)
        return Finding(known.code, f"the engine failed: {match.expand(known.what)}", why, fix, evidence)
    if exit_code in (-signal.SIGKILL, 128 + signal.SIGKILL):
        why = "by SIGKILL, which is also what the kernel does when memory runs out"
        fix = "look at dmesg; if it says out of memory, give it more or use a smaller model"
        return Finding("engine.killed", "the engine was killed", why, fix, last)
    if cause := _cause(lines):
        fix = "read its log above that line"
        return Finding("engine.failed", f"the engine failed: {cause}", why, fix, (cause,))
    return Finding("engine.ended", "the engine ended", why, "read its log", last)


def _lines(log: str) -> Iterator[_Line]:
    """Without prefixes, blank lines and warnings (one of vLLM's quotes an OSError at
    every start).
    """
    for raw in log.splitlines():
        prefix = PREFIX.match(raw)
        text = raw[prefix.end() :] if prefix else raw
        if text.strip() and not (prefix and prefix["level"] in QUIET):
            yield _Line((prefix and prefix["who"]) or "", text.rstrip())


def _find(lines: list[_Line]) -> _Found | None:
    for known in SIGNS:
        matches = [match for line in lines if (match := re.search(known.pattern, line.text))]
        if matches:
            return known, matches[-1], _evidence(match.string for match in matches)
    return None


def _cause(lines: list[_Line]) -> str:
    """The last un-indented exception of a worker or the engine's core, else of anybody;
    for pydantic's the value error below it.
    """
    values = [line for line in lines if VALUE_ERROR.match(line.text)]
    raised = [line for line in lines if EXCEPTION.match(line.text) and EFFECT not in line.text]
    core = [line for line in raised if line.who.startswith(("Worker", "EngineCore"))]
    return _short((core or values or raised or [_Line("", "")])[-1].text).removeprefix("Value error, ")


def _ended(exit_code: int | None) -> str:
    if exit_code is None:
        return "it ended"
    if exit_code < 0:
        return f"it ended by {signal.Signals(-exit_code).name}"
    return f"it ended with exit code {exit_code}" + ("" if exit_code else ", which for a server is a failure")


def _nearest(said: str, log: str) -> str:
    """For an argument that is not known, the nearest one that the engine's own usage
    lists.
    """
    wrong = FLAG.findall(said) if said.startswith("unrecognized") else []
    known = set(FLAG.findall(log)) - set(wrong)
    near = [close[0] for flag in wrong if (close := difflib.get_close_matches(flag, known, 1))]
    return f" (did you mean {', '.join(near)}?)" if near else ""


def last_line(text: str) -> str:
    """The last one that says anything, its end."""
    return next((line[-160:] for line in reversed(text.splitlines()) if line.strip()), "")


def _evidence(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(_short, texts)))[-EVIDENCE_LINES:]


def _short(text: str) -> str:
    return text.strip().partition(" [type=")[0][:EVIDENCE_WIDTH]
