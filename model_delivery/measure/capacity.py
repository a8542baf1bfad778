"""The highest rate that a service holds within its SLO: an open loop, doubled until it
breaks, then halved in between; bounded steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import fmean

from model_delivery.measure.metrics import LoadReport
from model_delivery.measure.verdict import judge
from model_delivery.values import Slo

PRECISION = 1.1
GROWTH, SLACK = 1.5, 3.0


@dataclass(frozen=True)
class Point:
    """One rate that was tried (requests/s), what was measured, and why it does not hold
    (empty: it does).
    """

    rate: float
    report: LoadReport
    why: str

    @property
    def holds(self) -> bool:
        return not self.why


@dataclass(frozen=True)
class Capacity:
    """``rate``: the highest that held, None where none did; ``broken``: the lowest that
    did not; ``limit`` says what ended the search.
    """

    rate: float | None
    broken: float | None
    limit: str
    points: tuple[Point, ...]

    def replicas(self, demand: float) -> int | None:
        """How many of what was tested hold ``demand`` requests/s together."""
        return math.ceil(demand / self.rate) if self.rate else None


def find(measure: Callable[[float], LoadReport], slo: Slo, *, start: float, steps: int = 12) -> Capacity:
    """Try rates from ``start`` on, at most ``steps``, until the highest that holds and
    the lowest that does not are within 10 %.
    """
    points: list[Point] = []
    low = high = None
    rate, limit = start, f"{steps} steps were made"
    while len(points) < steps:
        report = measure(rate)
        point = Point(rate, report, broken(report, slo))
        points.append(point)
        if report.validity.kind == "client-limited":
            limit = f"the load generator is the limit at {rate:.3g}/s: {report.validity.why}"
            break
        if point.holds:
            low = rate
        else:
            high, limit = rate, point.why
        if low and high and high / low <= PRECISION:
            break
        rate = math.sqrt(low * high) if low and high else rate * 2 if low else rate / 2
    return Capacity(low, high, limit, tuple(sorted(points, key=lambda point: point.rate)))


def broken(report: LoadReport, slo: Slo) -> str:
    """Why the rate does not hold; empty when it does."""
    reasons = [finding.what for finding in judge(None, report, slo).findings()]
    return "; ".join([*reasons, *_backlog(report)])


def _backlog(report: LoadReport) -> Iterator[str]:
    """A queue that grows has no steady latency, whatever was measured so far."""
    in_flight = [moment.in_flight for moment in report.timeline]
    third = len(in_flight) // 3
    if not third:
        return
    first, last = fmean(in_flight[:third]), fmean(in_flight[-third:])
    if last > GROWTH * first + SLACK:
        yield f"requests in flight grew from {first:.0f} to {last:.0f}: more come than are served"
