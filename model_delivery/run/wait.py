"""Waiting: the place is observed, a judgement is made, a deadline ends it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from model_delivery.base import Clock, Finding, Permanent, Progress, Retryable, report
from model_delivery.places import Place
from model_delivery.values import Failed, InProgress, World

R = TypeVar("R")
NEWS_SECONDS = 15.0  # between two lines that say the same


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
) -> R:
    """Observe until ``judge`` says neither InProgress nor Failed; returns what it says
    then. ``since``: when what is waited for began, on ``clock``; None: now.

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
            report(Progress(what, f"{state.why}, {spent:.0f} of at most {timeout:.0f} s"))
            before, told = state.why, spent
        if spent >= timeout:
            fix = state.fix or "raise serving.startup_timeout, or read the log with `deliver logs`"
            late = f"{what} is not ready after {timeout:.0f} s"
            evidence = (f"its log ends with: {state.last}",) if state.last else ()
            raise Permanent(Finding("rollout.not-ready-in-time", late, f"last seen: {state.why}", fix, evidence))
        place.hint(delivery, max(0.01, timeout - spent))
