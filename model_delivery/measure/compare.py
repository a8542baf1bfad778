"""Has it become slower than the release before? Welch's t-test on the logarithms of each
run's figures; pure.

One-sided, 95 % sure of all metrics together (Bonferroni): a regression is named when the
change is beyond the noise *and* larger than allowed. The noise bound is what the test
could miss or imagine; where it is wider than what is allowed, that is said instead of a
verdict.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Literal

from model_delivery.measure.metrics import LoadReport
from model_delivery.values.metrics import HEADLINES, Figure

CONFIDENCE = 0.95
Outcome = Literal["regressed", "no regression", "not resolved"]


@dataclass(frozen=True)
class Comparison:
    """Of the runs' means; ``worse`` by a share (negative: better), ± ``noise`` (None: one
    run shows none).
    """

    figure: Figure
    before: float
    after: float
    worse: float
    noise: float | None
    outcome: Outcome


def comparable(new: LoadReport, old: LoadReport) -> str | None:
    """Why these two must not be compared, None when they may."""
    for name in ("load", "profile"):
        if getattr(new, name) != getattr(old, name):
            return f"the {name} was {getattr(old, name)}, now it is {getattr(new, name)}"
    if not old.validity.valid:
        return f"the earlier test was not valid: {old.validity.kind}"
    return None


def compare(new: LoadReport, old: LoadReport, allowed: float) -> tuple[Comparison, ...]:
    """Every judged metric that both have; ``allowed``: the share by which a metric may be
    worse.
    """
    every = (*new.runs, *old.runs)
    figures = [f for f in HEADLINES if f.metric.compared and all(run.get(f.name, 0) > 0 for run in every)]
    return tuple(_comparison(f, new, old, allowed, len(figures)) for f in figures)


def _comparison(figure: Figure, new: LoadReport, old: LoadReport, allowed: float, tests: int) -> Comparison:
    after, before = ([run[figure.name] for run in load.runs] for load in (new, old))
    sign = -1 if figure.metric.worse == "below" else 1
    logs = [[sign * math.log(value) for value in runs] for runs in (after, before)]
    step = fmean(logs[0]) - fmean(logs[1])
    noise = _noise(logs, 1 - (1 - CONFIDENCE) / tests)
    worse = math.expm1(step)
    outcome: Outcome = "no regression"
    if noise is None or math.expm1(noise) > allowed:
        outcome = "not resolved"
    if noise is not None and step > noise and worse > allowed:
        outcome = "regressed"
    return Comparison(figure, fmean(before), fmean(after), worse, None if noise is None else math.expm1(noise), outcome)


def _noise(logs: Sequence[Sequence[float]], confidence: float) -> float | None:
    """Half the one-sided interval of the difference of two means (Welch, Satterthwaite's
    degrees of freedom).
    """
    if min(map(len, logs)) < 2:
        return None
    parts = [variance(values) / len(values) for values in logs]
    if not sum(parts):
        return 0.0
    freedom = sum(parts) ** 2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, logs, strict=True))
    return student(confidence, freedom) * math.sqrt(sum(parts))


def student(confidence: float, freedom: float) -> float:
    """The quantile of Student's t; with x = √ν · tan θ its density is cosⁿ⁻¹ θ, which
    Simpson's rule integrates.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if 0.5 + _area(middle, freedom) < confidence else (low, middle)
    return math.sqrt(freedom) * math.tan((low + high) / 2)


def _area(angle: float, freedom: float, parts: int = 200) -> float:
    step = angle / parts
    inner = sum((4 if n % 2 else 2) * math.cos(n * step) ** (freedom - 1) for n in range(1, parts))
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    area: float = scale * step / 3 * (1 + inner + max(0.0, math.cos(angle)) ** (freedom - 1))
    return area
