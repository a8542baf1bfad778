"""Waiting: the place is observed, a judgement is made, a deadline ends it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from model_delivery.base import Clock, Finding, Permanent, Progress, Retryable, report
from model_delivery.places import Place
from model_delivery.values import Failed, InProgress, Phase, Start, World

R = TypeVar("R")
BEFORE_PROCESS = (Phase.SCHEDULED, Phase.PULLED)
NEWS_SECONDS = 15.0  # between two lines that say the same


@dataclass
class Timeline:
    """When each phase of a start was come by, in seconds since it began: as somebody told
    it, else as it was first seen. One that was over before the first look, and nobody
    says when, has no time. ``before``: of the last start of the same. ``process``: when
    its process began, as it was told. ``kept``: does it start with what an earlier one
    compiled?
    """

    before: Mapping[Phase, float] = field(default_factory=dict)
    began: float | None = None
    seconds: dict[Phase, float] = field(default_factory=dict)
    missed: set[Phase] = field(default_factory=set)
    process: float | None = None
    kept: bool = False
    told: set[Finding] = field(default_factory=set)

    def note(self, start: Start | None, now: float) -> None:
        """What a look at ``now`` (seconds since the epoch) shows of it."""
        if start is None:
            return
        self.kept = start.kept
        for finding in start.findings:
            if finding not in self.told:
                self.told.add(finding)
                report(Progress("cache", str(finding)))
        if start.began != self.began:
            self.began, self.seconds, self.process = start.began, {}, None
            self.missed = {phase for phase, at in start.reached.items() if at is None}
        order, process = [*Phase], start.reached.get(Phase.PROCESS)
        if process and self.process and process > self.process:  # it ended, and was started anew where it was
            self.seconds = {phase: at for phase, at in self.seconds.items() if phase in BEFORE_PROCESS}
        self.process = process or self.process
        for number, phase in enumerate(order):
            if phase in start.reached and phase not in self.seconds.keys() | self.missed:
                at, told = start.reached[phase], self.seconds
                after = [told[later] for later in order[number:] if later in told]
                before = [told[earlier] for earlier in order[:number] if earlier in told]
                spent = min(now if at is None else at, now) - start.began
                self.seconds[phase] = round(max(0.0, *before, min(spent, *after, spent)), 1)

    def left(self, now: float) -> float | None:
        """Seconds, as the start before went on from the phase that this one has come
        by.
        """
        if self.began is None or Phase.HEALTHY not in self.before:
            return None
        last = next((phase for phase in reversed(Phase) if phase in self.seconds and phase in self.before), None)
        late = self.seconds[last] - self.before[last] if last else 0.0
        left = self.before[Phase.HEALTHY] + late - (now - self.began)
        return left if left > 0 else None


def until(
    place: Place,
    delivery: str,
    judge: Callable[[World], R | InProgress | Failed],
    *,
    what: str,
    timeout: float,
    clock: Clock,
    reached: str = "ready",
    since: float | None = None,
    timeline: Timeline | None = None,
) -> R:
    """Observe until ``judge`` says neither InProgress nor Failed; returns what it says
    then. ``since``: when what is waited for began, on ``clock``; None: now. ``timeline``:
    of the start that it is.

    Raises the finding of Failed at once (Retryable or Permanent as it says), Permanent
    after ``timeout`` seconds.
    """
    start = clock.monotonic()
    began = start if since is None else since
    before, told = "", 0.0
    while True:
        state = judge(place.world(delivery))
        spent, age = clock.monotonic() - start, clock.monotonic() - began
        if isinstance(state, Failed):
            report(Progress(what, f"failed after {age:.1f} s: {state.finding.what}"))
            raise (Retryable if state.retryable else Permanent)(state.finding)
        if not isinstance(state, InProgress):
            report(Progress(what, f"{reached} after {age:.1f} s"))
            return state
        if state.why != before or spent - told >= NEWS_SECONDS:
            left = timeline.left(clock.now()) if timeline else None
            report(Progress(what, f"{state.why}, {spent:.0f} of at most {timeout:.0f} s", eta=left))
            before, told = state.why, spent
        if spent >= timeout:
            fix = state.fix or "raise serving.startup_timeout, or read the log with `deliver logs`"
            late = f"{what} is not ready after {timeout:.0f} s"
            evidence = (f"its log ends with: {state.last}",) if state.last else ()
            raise Permanent(Finding("rollout.not-ready-in-time", late, f"last seen: {state.why}", fix, evidence))
        place.hint(delivery, max(0.01, timeout - spent))
