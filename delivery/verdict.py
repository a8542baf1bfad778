"""The verdict: pure. Every reason in words, with figure and bound."""

from __future__ import annotations

from dataclasses import dataclass

from delivery.metrics import LATENCIES, RATES, LoadReport
from delivery.spec import Slo
from delivery.steps.smoke import SmokeReport
from delivery.units import Duration


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


def judge(smoke: SmokeReport | None, load: LoadReport | None, slo: Slo | None) -> Verdict:
    """Passed when every smoke check and every bound of ``slo`` holds; a figure that was not measured fails its bound.

    Figures that are not valid are not judged: that they are not is the one reason.
    """
    reasons = [Reason("smoke", check.name, check.passed, f"{check.name}: {check.detail}") for check in smoke.checks] if smoke else []
    if load is not None and not load.validity.valid:
        reasons.append(
            Reason("throughput", "validity", False, f"the load test cannot be judged, it is {load.validity.kind}: {load.validity.why}")
        )
    elif load is not None and slo is not None:
        reasons += [_bound(load, key, value) for key, value in slo if value is not None]
    return Verdict(tuple(reasons))


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
