"""Waiting: the place is observed, the target judges, a deadline ends it."""

from __future__ import annotations

from collections.abc import Callable

from model_delivery.base.clock import Clock
from model_delivery.base.findings import Finding, Permanent, Retryable
from model_delivery.base.progress import Progress, report
from model_delivery.places import Place
from model_delivery.values.readiness import Current, Failed, InProgress, Readiness
from model_delivery.values.resources import World

WORDS = ("started", "ended", "gone")  # of what has no endpoint: steps, and what is deleted


def until(
    place: Place, delivery: str, judge: Callable[[World], Readiness], *, what: str, timeout: float, clock: Clock
) -> str:
    """Observe until ``judge`` says Current; returns its endpoint.

    Raises the finding of Failed at once (Retryable or Permanent as it says), and Permanent after ``timeout`` seconds.
    """
    start = clock.monotonic()
    said = ""
    while True:
        state = judge(place.world(delivery))
        spent = clock.monotonic() - start
        match state:
            case Current(endpoint):
                report(Progress(what, f"{endpoint if endpoint in WORDS else 'ready'} after {spent:.1f} s"))
                return endpoint
            case Failed(finding, retryable):
                report(Progress(what, f"failed after {spent:.1f} s: {finding.what}"))
                raise (Retryable if retryable else Permanent)(finding)
            case InProgress(why):
                if why != said:
                    report(Progress(what, why, done=round(spent, 1), total=timeout, unit="s"))
                said = why
                if spent >= timeout:
                    fix = "raise serving.startup_timeout, or read the log with `deliver logs`"
                    raise Permanent(
                        Finding("todo", f"{what} is not ready after {timeout:.0f} s", f"last seen: {why}", fix)
                    )
        place.hint(delivery, max(0.01, timeout - spent))
