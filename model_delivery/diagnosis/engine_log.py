"""What an engine's log says, what that means, and what to do."""

from __future__ import annotations

import difflib
import re
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from model_delivery.base import Finding, scrub, short
from model_delivery.diagnosis import machine_signs as machine
from model_delivery.diagnosis.engine_signs import ARGUMENTS, MODEL, Sign
from model_delivery.diagnosis.log_lines import ANSI, EFFECT, STAMP, Raised, causes, exceptions, read
from model_delivery.values import Failed

USAGE = 2  # the exit code for arguments that are refused
EVIDENCE_LINES = 5
EVIDENCE_WIDTH = 300
SIGNS = (*machine.TELLING, *ARGUMENTS, *MODEL, *machine.SIGNS)  # the first that fits counts
REFUSED = re.compile(r": error: (?:unrecognized arguments|argument )")  # the parser's last words
FLAG = re.compile(r"--[a-z0-9][a-z0-9-]+")
WORD = re.compile(r"[\w.-]+")
NAMES = {name: number for number in signal.valid_signals() if (name := signal.strsignal(number))}
SIGNALLED = re.compile(
    r"exit ?code\s*:\s*-(\d+)|Failed core proc\(s\): \{.*?: -(\d+)|Signal (\d+) \(SIG|exit ?code\s*:\s*(1[2-4]\d)\b"
    r"|(?:terminated with signal|^\*\*\*) (SIG[A-Z]+)"
    rf"|^(?:Fatal Python error: )?({'|'.join(map(re.escape, NAMES))})(?: \(core dumped\))?$"
)
STOPS = (signal.SIGTERM, signal.SIGINT)
KILLED = "by SIGKILL, which is also what the kernel does when memory runs out"


@dataclass(frozen=True)
class _Found:
    sign: Sign
    match: re.Match[str]
    evidence: tuple[str, ...]

    def told(self, log: str, *cause: str) -> Finding:
        """``cause``: the exception behind what is only an effect."""
        what = ": ".join(("the engine failed", self._filled(self.sign.what), *cause))
        fix = self._filled(self.sign.fix) + self._nearest(log)
        return Finding(self.sign.code, what, "", fix, _evidence((*cause, *self.evidence)))

    def _filled(self, text: str) -> str:
        return _short(self.match.expand(text).replace(" ()", ""))

    def _nearest(self, log: str) -> str:
        """For a word that is not known, the nearest of those that the text lists; for an
        argument, of the engine's own usage.
        """
        groups = self.match.groupdict()
        wrong = [groups["said"]] if "said" in groups else FLAG.findall(self.match[0])
        known = set(WORD.findall(groups["known"] or "")) if "known" in groups else set(FLAG.findall(log)) - set(wrong)
        unknown = "said" in groups or self.match[0].startswith("unrecognized")
        near = [close[0] for word in wrong if unknown and (close := difflib.get_close_matches(word, known, 1))]
        return f" (did you mean {', '.join(near)}?)" if near else ""


def diagnose(log: str, exit_code: int | None, *seen: str) -> Failed:
    """Why an engine that has ended did so: ``log`` is its tail, ``exit_code`` None when
    nobody saw it (negative, or above 128: a signal).

    ``what`` names the cause, ``why`` how it ended, ``evidence`` the lines that say so (at
    most 5), then ``seen``. Retryable: starting it again, as it stands, may help; a
    SIGKILL of unknown origin does not count.
    """
    finding, retryable = _told(scrub(log), exit_code)
    finding = replace(finding, why=finding.why or _ended(exit_code), evidence=(*finding.evidence, *seen))
    return Failed(finding, retryable and exit_code != USAGE)


def _told(log: str, exit_code: int | None) -> tuple[Finding, bool]:
    """By the most telling first: the words of a real exception, a signal, the exception
    itself, and at last what only says that something failed.
    """
    lines = list(read(log))
    raised = causes(lines)
    own = [line.text for line in lines if not line.quiet]
    refused = [text for text in own if REFUSED.search(text)]
    real = refused or [one.message for one in raised] or [text for text in own if not EFFECT.search(text)]
    every = [line.text for line in lines]
    found = next(filter(None, (_find([text], SIGNS) for text in real)), None)
    failed = found.match.string if found else "\n".join(one.message for one in raised[:1])
    reasons = [sign for sign in machine.TELLING if sign.explains and re.search(sign.explains, failed)]
    if found := _find(every, reasons) or found:
        return found.told(log), found.sign.retryable
    if told := _by_signal(own, raised, exit_code):
        return told
    first = [_short(one.text) for one in raised[:1]]
    if found := _find(own, machine.LAST):
        return found.told(log, *first), found.sign.retryable
    for one in (*raised[:1], *[*exceptions(lines)][-1:]):
        shown = _evidence(one.message.splitlines()[:EVIDENCE_LINES])
        return Finding(
            "engine.failed", f"the engine failed: {_short(one.text)}", "", "read its log above that line", shown
        ), False
    last = _evidence(line for line in every[-3:])
    return Finding("engine.ended", "the engine ended", "", "read its log", last), False


def _by_signal(own: Sequence[str], raised: Sequence[Raised], exit_code: int | None) -> tuple[Finding, bool] | None:
    """None: no process ended by a signal, or an exception says more."""
    ends = [(number, match.string) for match in filter(None, map(SIGNALLED.search, own)) if (number := _number(match))]
    child = next(((number, text) for number, text in ends if number not in STOPS), None)
    number = child[0] if child else _signal(exit_code)
    if number is None or (raised and (raised[0].depth or number not in machine.BY_SIGNAL)):
        return None
    if child is None and number == signal.SIGKILL:
        fix = "look at dmesg; if it says out of memory, give it more or use a smaller model"
        return Finding("engine.killed", "the engine was killed", KILLED, fix, _evidence(own[-3:])), False
    known = machine.BY_SIGNAL.get(number, machine.CRASHED)
    what = f"the engine failed: {'one of its processes' if child else 'it'} {known.what} ({_name(number)})"
    return Finding(known.code, what, "", known.fix, _evidence([child[1]] if child else own[-3:])), known.retryable


def _find(texts: Sequence[str], signs: Iterable[Sign]) -> _Found | None:
    for sign in signs:
        if found := [match for text in texts if (match := re.search(sign.pattern, text, re.MULTILINE))]:
            return _Found(sign, found[-1], tuple(line for match in found for line in _shown(match)))
    return None


def _shown(match: re.Match[str]) -> list[str]:
    """The first line of a message, and those that hold the match."""
    text, start, end = match.string, match.string.rfind("\n", 0, match.start()) + 1, match.end()
    return [text.partition("\n")[0], *(text[start:end] + text[end:].partition("\n")[0]).splitlines()]


def _number(match: re.Match[str]) -> int | None:
    text = next(filter(None, match.groups()))
    if not text.isdigit():
        return NAMES.get(text) or getattr(signal, text, None)
    return _signal(int(text) if int(text) > 128 else -int(text))


def _signal(exit_code: int | None) -> int | None:
    """The signal that an exit code stands for, as Popen or as a shell tells it."""
    number = 0 if exit_code is None else -exit_code if exit_code < 0 else exit_code - 128
    return number if number in signal.valid_signals() else None


def _name(number: int) -> str:
    return signal.Signals(number).name if number in [*signal.Signals] else f"signal {number}"


def _ended(exit_code: int | None) -> str:
    if exit_code is None:
        return "it ended"
    if number := _signal(exit_code):
        return f"it ended by {_name(number)}"
    return f"it ended with exit code {exit_code}" + ("" if exit_code else ", which for a server is a failure")


def last_line(text: str) -> str:
    """The last one that says anything, its end."""
    lines = (re.sub(STAMP, "", line) for line in reversed(ANSI.sub("", text).splitlines()))
    return next((short(line, -160) for line in lines if line.strip()), "")


def _evidence(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(_short, texts)))[-EVIDENCE_LINES:]


def _short(text: str) -> str:
    return text.strip().removeprefix("Value error, ")[:EVIDENCE_WIDTH]
