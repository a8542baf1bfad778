"""An engine's log as lines without prefixes and colours, and the exceptions that its
processes raised.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

WIDTH = 2000  # of a line, so that no pattern works long
MORE_LINES = 8  # of a message that has several
ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
STAMP = r"^(?:(?P<at>\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:\d\d)) (?:std(?:out|err) [FP] )?)?"  # of a container's log
PREFIX = re.compile(
    rf"{STAMP}"
    r"(?:\((?=[^()]*\))(?=[^()]*?\bpid=\d)(?P<who>\w*)[^()]*?\bpid=\d+[^()]*\) ?)*"  # Ray's stand within vLLM's own
    r"(?P<rank>\[rank\d+\]: ?)?"
    r"(?:(?P<level>[A-Z]+) [\d-]+ [\d:.,]+ \[(?P<file>[\w./-]*)[^\]]*\] ?|(?P<server>[A-Z]+): {3,}"
    r"|\[?(?P<native>[DIWEF])\d{4} [\d:.]+ [^\]]*\] ?)?"
    r"(?: +[|+] )?"  # within an exception group
)
QUIET = ("DEBUG", "INFO", "WARNING", "D", "I", "W")
WARNED = re.compile(r"\S+:\d+: \w*Warning: ")  # as Python writes one
DEPTHS = (("Worker", "VllmWorker", "RayWorker", "multiproc_executor"), ("EngineCore", "core"))  # what depends on what
TRACEBACK = re.compile(r"\s*(?:[╭─]+ ?)?Traceback \(most recent call last\)")
DURING = "During handling of the above exception"
CHAINED = re.compile(rf"{DURING}|The above exception was the direct cause|{TRACEBACK.pattern}")
RAISED = re.compile(
    r"(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Failure)(?:\(\w+\))?(?:: .*)?$|(?:[a-z_]\w*\.)+[A-Z]\w+: ."
)
SAID = re.compile(r"\s+(?:Value error, |Assertion failed, |Input should be |what\(\): )")  # pydantic's and C++'s
# What an import's or a look-up's fallback handles: the exception after it is what failed.
FALLBACK = re.compile(
    r"(?:[\w.]+\.)?(?:StopIteration|PackageNotFoundError|(?:Key|Index|Lookup|Attribute|Import|ModuleNotFound)Error)\b"
)
FAILS = re.compile(r"failed to start|hit an exception|encountered a fatal error")
# Each only says that something else failed, or was stopped because of it.
EFFECT = re.compile(
    r"[Ss]ee (?:the )?(?:root cause|stack trace|error)|[Pp]lease check the (?:logs|stack trace)"
    r"|(?:Worker|[Ee]ngine ?[Cc]ore|Engine process|Engine)\w* (?:initialization failed|failed to start|died)"
    r"|Engine\w*DeadError|Executor failed|[Bb]ackground loop|Engine loop|died unexpectedly|exited unexpectedly"
    r"|CalledProcessError|non-zero exit status|raised in subprocess"
    r"|Process(?:Exited|Raised)Exception|ChildFailedError|RayTaskError|RayActorError|Actor\w*Error|WorkerCrashedError"
    r"|ExceptionGroup|\d+ validation errors? for|waiting for engine core|sample_tokens.*timed out"
    r"|^(?:[\w.]+\.)?(?:BrokenPipeError|EOFError|Connection(?:Reset|Refused|Aborted)Error|KeyboardInterrupt|SystemExit"
    r"|CancelledError|RuntimeError: cancelled)"
    r"|[Cc]onnection (?:was )?(?:closed|reset) by (?:remote )?peer|ncclRemoteError|remote process exited"
    r"|recvValue failed"
)


@dataclass(frozen=True)
class Line:
    """``depth``: of the process that wrote it, 2 of a worker, 1 of the engine's core.
    ``at``: when, as a container's log says.
    """

    depth: int
    text: str
    quiet: bool = False
    at: str = ""


@dataclass(frozen=True)
class Raised:
    """An exception, with the further lines of its message; ``at``: of the line."""

    at: int
    depth: int
    text: str
    message: str

    @property
    def effect(self) -> bool:
        return EFFECT.search(self.text) is not None


def read(log: str) -> Iterator[Line]:
    """Without prefixes, blank lines, the input that pydantic repeats, and a parser's
    usage, which names every argument there is.
    """
    usage, at = False, ""
    for raw in ANSI.sub("", log).splitlines():
        found = PREFIX.match(raw[:WIDTH])
        at = (found and found["at"]) or at  # a bar is rewritten in its line
        if found is not None and (text := raw[found.end() : WIDTH].partition(" [type=")[0].rstrip()):
            if usage := text.startswith("usage: ") or (usage and text[0].isspace()):
                continue
            level = found["level"] or found["server"] or found["native"]
            depth = 2 if found["rank"] else _depth(found["who"] or found["file"] or "")
            yield Line(depth, text, level in QUIET or WARNED.match(text) is not None, at)


def _depth(who: str) -> int:
    return next((2 - n for n, names in enumerate(DEPTHS) if who.startswith(names)), 0)


def exceptions(lines: list[Line]) -> Iterator[Raised]:
    """What closes a traceback, whatever it is called, and what looks like an exception
    elsewhere.
    """
    within = set[int]()  # the depths of processes amid a traceback
    for at, line in enumerate(lines):
        if line.quiet:
            continue
        if TRACEBACK.match(line.text):
            within.add(line.depth)
        elif SAID.match(line.text) or (
            line.text[0] not in " \t│╰" and (line.depth in within or RAISED.match(line.text))
        ):
            within.discard(line.depth)
            yield Raised(at, line.depth, line.text, "\n".join(_message(lines, at)))


def _message(lines: list[Line], at: int) -> Iterator[str]:
    """With none of its own, where it was raised."""
    yield lines[at].text
    if ":" not in lines[at].text:
        frames = (line.text for line in lines[max(0, at - MORE_LINES) : at] if line.depth == lines[at].depth)
        yield from (text for text in frames if text[0].isspace())
    for line in lines[at + 1 : at + 1 + MORE_LINES]:
        if line.depth != lines[at].depth or TRACEBACK.match(line.text) or RAISED.match(line.text) or line.quiet:
            return
        yield line.text


def causes(lines: list[Line]) -> list[Raised]:
    """The real exceptions of the process that failed: the deepest that raised one. Those
    that it failed of come first, what it survived before that last; what it had a
    fallback for is none.
    """
    real = [raised for raised in exceptions(lines) if not raised.effect]
    real = [raised for raised in real if not _handled(lines, raised)] or real
    deepest = max((raised.depth for raised in real), default=0)
    failed = next((at for at, line in enumerate(lines) if line.depth == deepest and FAILS.search(line.text)), -1)
    return sorted((raised for raised in real if raised.depth == deepest), key=lambda raised: raised.at < failed)


def _handled(lines: list[Line], raised: Raised) -> bool:
    """Was another one raised while it was handled, which is not said to be its effect?"""
    if not FALLBACK.match(raised.text):
        return False
    after = (line.text for line in lines[raised.at + 1 :] if line.depth == raised.depth)
    return next((text for text in after if CHAINED.match(text)), "").startswith(DURING)
