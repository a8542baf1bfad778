"""Has it become slower than the release before? Welch's t-test on the logarithms of each run's figures; pure.

One-sided, 95 % sure of all metrics together (Bonferroni): a regression is named when the change is beyond the noise *and* larger than allowed.
The noise bound is what the test could miss or imagine; where it is wider than what is allowed, that is said instead of a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Literal

from model_delivery.measure.metrics import LoadReport

CONFIDENCE = 0.95
JUDGED = ("ttft_p95", "itl_p95", "tpot_p95", "output_tokens_per_second")
LOWER_IS_WORSE = ("output_tokens_per_second",)


@dataclass(frozen=True)
class Comparison:
    """One metric: means of the runs, ``worse`` by how much (a share; negative: better), ± ``noise`` (None: one run shows none)."""

    key: str
    before: float
    after: float
    worse: float
    noise: float | None
    outcome: Literal["regressed", "no regression", "not resolved"]


def comparable(new: LoadReport, old: LoadReport) -> str | None:
    """Why these two must not be compared, None when they may."""
    for name in ("load", "profile"):
        if getattr(new, name) != getattr(old, name):
            return f"the {name} was {getattr(old, name)}, now it is {getattr(new, name)}"
    if not old.validity.valid:
        return f"the earlier test was not valid: {old.validity.kind}"
    return None


def compare(new: LoadReport, old: LoadReport, allowed: float) -> tuple[Comparison, ...]:
    """Every judged metric that both have; ``allowed``: the share by which a metric may be worse."""
    keys = [key for key in JUDGED if all(run.get(key, 0) > 0 for run in (*new.runs, *old.runs))]
    return tuple(_one(key, [r[key] for r in new.runs], [r[key] for r in old.runs], allowed, len(keys)) for key in keys)


def _one(key: str, new: Sequence[float], old: Sequence[float], allowed: float, tests: int) -> Comparison:
    sign = -1 if key in LOWER_IS_WORSE else 1
    logs = [[sign * math.log(value) for value in runs] for runs in (new, old)]
    step = fmean(logs[0]) - fmean(logs[1])
    noise = _noise(logs, 1 - (1 - CONFIDENCE) / tests)
    worse = math.expm1(step)
    outcome: Literal["regressed", "no regression", "not resolved"] = "no regression"
    if noise is None or math.expm1(noise) > allowed:
        outcome = "not resolved"
    if noise is not None and step > noise and worse > allowed:
        outcome = "regressed"
    return Comparison(key, fmean(old), fmean(new), worse, None if noise is None else math.expm1(noise), outcome)


def _noise(logs: Sequence[Sequence[float]], confidence: float) -> float | None:
    """The half-width of the one-sided interval of the difference of two means (Welch, Satterthwaite's degrees of freedom)."""
    if min(map(len, logs)) < 2:
        return None
    parts = [variance(values) / len(values) for values in logs]
    if not sum(parts):
        return 0.0
    freedom = sum(parts) ** 2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, logs, strict=True))
    return student(confidence, freedom) * math.sqrt(sum(parts))


def student(confidence: float, freedom: float) -> float:
    """The quantile of Student's t; with x = √ν · tan θ its density is cosⁿ⁻¹ θ, which Simpson's rule integrates."""
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
