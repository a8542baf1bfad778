"""The verdict: pure. Every reason in words, with figure and bound."""

from __future__ import annotations

from dataclasses import dataclass

from model_delivery.base.units import Duration
from model_delivery.measure.compare import CONFIDENCE, Comparison, comparable, compare
from model_delivery.measure.metrics import LATENCIES, RATES, LoadReport
from model_delivery.measure.smoke import SmokeReport
from model_delivery.values.gates import Slo


@dataclass(frozen=True)
class Reason:
    """One thing that was judged; ``figure`` and ``bound`` in the metric's unit, None where there are none."""

    gate: str
    name: str
    passed: bool
    text: str
    figure: float | None = None
    bound: float | None = None


@dataclass(frozen=True)
class Verdict:
    reasons: tuple[Reason, ...]

    @property
    def passed(self) -> bool:
        return all(reason.passed for reason in self.reasons)


def judge(
    smoke: SmokeReport | None,
    load: LoadReport | None,
    slo: Slo | None,
    *,
    baseline: LoadReport | None = None,
    max_regression: float | None = None,
) -> Verdict:
    """Passed when every smoke check and every bound of ``slo`` holds; a figure that was not measured fails its bound.

    Figures that are not valid are not judged: that they are not is the one reason. ``baseline``: the load test of the release before, than which
    no metric may be worse by more than ``max_regression`` (a share).
    """
    reasons = (
        [Reason("smoke", check.name, check.passed, f"{check.name}: {check.detail}") for check in smoke.checks]
        if smoke
        else []
    )
    if load is not None and not load.validity.valid:
        reasons.append(
            Reason(
                "throughput",
                "validity",
                False,
                f"the load test cannot be judged, it is {load.validity.kind}: {load.validity.why}",
            )
        )
    elif load is not None and slo is not None:
        reasons += [_bound(load, key, value) for key, value in slo if value is not None]
        if baseline is not None and max_regression is not None:
            reasons += _regressions(load, baseline, max_regression)
    return Verdict(tuple(reasons))


def _regressions(load: LoadReport, baseline: LoadReport, allowed: float) -> list[Reason]:
    if (why := comparable(load, baseline)) is not None:
        return [Reason("throughput", "regression", True, f"not compared with the release before: {why}")]
    return [_regression(one, allowed) for one in compare(load, baseline, allowed)]


def _regression(one: Comparison, allowed: float) -> Reason:
    name, unit = words(f"{one.key}_max")
    side = "worse" if one.worse >= 0 else "better"
    sure = (
        "one run shows no noise"
        if one.noise is None
        else f"noise bound {100 * one.noise:.2g} % at {100 * CONFIDENCE:.0f} % confidence"
    )
    text = f"{name} {shown(one.after, unit)}, before {shown(one.before, unit)}: {100 * abs(one.worse):.3g} % {side}, {100 * allowed:.3g} % is allowed ({sure})"
    outcome = {"regressed": "regressed: ", "not resolved": "too noisy to tell, raise repeats: ", "no regression": ""}[
        one.outcome
    ]
    return Reason("throughput", f"{one.key} regression", one.outcome != "regressed", outcome + text, one.worse, allowed)


def _bound(load: LoadReport, key: str, value: Duration | float) -> Reason:
    bound = value.seconds * 1000 if isinstance(value, Duration) else float(value)
    name, unit = words(key)
    figure = load.figure(key)
    if figure is None:
        return Reason("throughput", key, False, f"{name} was not measured: no good request", None, bound)
    over = figure > bound if key.endswith("_max") else figure < bound
    side = "over" if key.endswith("_max") else "under"
    relation = f"{side} the bound of" if over else "within the bound of"
    text = f"{name} {shown(figure, unit)} is {relation} {shown(bound, unit)}"
    if key == "error_rate_max" and load.errors:
        text += f" ({', '.join(f'{count} × {kind}' for kind, count in sorted(load.errors.items()))})"
    return Reason("throughput", key, not over, text, figure, bound)


def words(key: str) -> tuple[str, str]:
    """An SLO key as people say it, and its unit: ``ttft_p95_max`` is ("TTFT p95", "ms")."""
    name = key.rsplit("_", 1)[0]
    for metric in RATES:
        if metric.key == name:
            return metric.title, metric.unit
    latency, _, percentile = name.rpartition("_")
    metric = next(m for m in LATENCIES if m.key == latency)
    return f"{metric.title} {percentile}", metric.unit


def shown(figure: float, unit: str) -> str:
    """A figure as people read it; a share as percent."""
    if not unit:
        return f"{100 * figure:.4g} %"
    return f"{figure:.4g} {unit}" if figure < 1000 else f"{figure:,.0f} {unit}"
