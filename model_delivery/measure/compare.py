"""Has it become slower than the release before? Welch's t-test on the logarithms of each
run's figures; pure.

One-sided, 95 % sure of all metrics together (Bonferroni): a regression is named when the
change is beyond the noise *and* larger than allowed. The noise bound is what the test
could miss or imagine; where it is wider than what is allowed, that is said instead of a
verdict.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean, variance
from typing import Literal

from model_delivery.measure.metrics import LoadReport
from model_delivery.values.metrics import HEADLINES, Figure

CONFIDENCE = 0.95
ONE_RUN, NO_DIFFERENCE = "one run shows no noise", "no difference that shows"
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

    @property
    def change(self) -> float:
        """Of the figure itself, as a share: up is positive, whatever is worse."""
        return self.worse if self.figure.metric.worse == "above" else 1 / (1 + self.worse) - 1

    @property
    def words(self) -> str:
        """Which way it went, where that is beyond the noise."""
        if self.noise is None:
            return ONE_RUN
        if self.worse > self.noise:
            return "worse"
        return "better" if 1 / (1 + self.worse) - 1 > self.noise else NO_DIFFERENCE


def comparable(new: LoadReport, old: LoadReport) -> str | None:
    """Why these two must not be compared, None when they may."""
    for name in ("load", "profile"):
        now, before = getattr(new, name), getattr(old, name)
        if now != before:
            return f"the {name} was {before}, now it is {now}"
    if not old.validity.judges("error_rate"):
        return f"the earlier test was not valid: {old.validity.kind}"
    return None


def repeated(load: LoadReport) -> LoadReport:
    """With its runs; of a report that kept none, all of it is one."""
    return load if load.runs else load.model_copy(update={"runs": (load.figures(),)})


def compare(new: LoadReport, old: LoadReport, allowed: float) -> tuple[Comparison, ...]:
    """Every judged metric that both have; ``allowed``: the share by which a metric may be
    worse. ArithmeticError where figures are none that a load test has.
    """
    new, old = repeated(new), repeated(old)
    every = (*new.runs, *old.runs)
    judged = [f for f in HEADLINES if f.metric.compared and new.validity.judges(f.metric.key)]
    figures = [f for f in judged if old.validity.judges(f.metric.key) and all(run.get(f.name, 0) > 0 for run in every)]
    found = tuple(_comparison(f, new, old, allowed, len(figures)) for f in figures)
    if not all(c.worse > -1 and all(map(math.isfinite, (c.before, c.after, c.change, c.noise or 0))) for c in found):
        raise ArithmeticError
    return found


def _comparison(figure: Figure, new: LoadReport, old: LoadReport, allowed: float, tests: int) -> Comparison:
    after, before = ([run[figure.name] for run in load.runs] for load in (new, old))
    sign = -1 if figure.metric.worse == "below" else 1
    logs = [[sign * math.log(value) for value in runs] for runs in (after, before)]
    noise = _noise(logs, 1 - (1 - CONFIDENCE) / tests)
    worse = math.expm1(fmean(logs[0]) - fmean(logs[1]))
    noisy = noise is None or noise > allowed
    outcome: Outcome = "not resolved" if noisy else "no regression"
    if noise is not None and worse > max(noise, allowed):
        outcome = "regressed"
    return Comparison(figure, fmean(before), fmean(after), worse, noise, outcome)


def _noise(logs: Sequence[Sequence[float]], confidence: float) -> float | None:
    """Half the one-sided interval of the difference of two means (Welch, Satterthwaite's
    degrees of freedom), as a share; None: one run shows none.
    """
    if min(map(len, logs)) < 2:
        return None
    parts = [variance(values) / len(values) for values in logs]
    if not sum(parts):
        return 0.0
    freedom = sum(parts) ** 2 / sum(part**2 / (len(values) - 1) for part, values in zip(parts, logs, strict=True))
    return math.expm1(student(confidence, freedom) * math.sqrt(sum(parts)))


def student(confidence: float, freedom: float, steps: int = 10_000) -> float:
    """The quantile of Student's t; with x = √ν · tan θ its density is cosⁿ⁻¹ θ, which is
    added up from the middle outwards.
    """
    step = math.pi / 2 / steps
    areas = [0.0, *accumulate(math.cos((n + 0.5) * step) ** (freedom - 1) for n in range(steps))]
    wanted = (2 * confidence - 1) * areas[-1]
    at = bisect_right(areas, wanted) - 1
    return math.sqrt(freedom) * math.tan(step * (at + (wanted - areas[at]) / (areas[at + 1] - areas[at])))
