"""Release, bound or node? By what the serving release does under the same load in the
same minutes; pure.
"""

from __future__ import annotations

from collections.abc import Iterator

from model_delivery.measure.compare import comparable, compare
from model_delivery.measure.metrics import LoadReport
from model_delivery.measure.verdict import NOT_VALID, Reason, Verdict, judge
from model_delivery.values import Slo
from model_delivery.values.metrics import Figure, shown

SAID = ("throughput", "the serving release")
SLOWER = 1.25  # than when it was promoted: the node's doing


def breaks_figures(judged: Verdict) -> bool:
    """Did a load test that could be judged break a bound, or regress?"""
    return any(_by_figure(reason) for reason in judged.reasons)


def blame(
    judged: Verdict,
    load: LoadReport,
    control: LoadReport,
    earlier: LoadReport | None,
    slo: Slo,
    max_regression: float | None,
    serving: str,
) -> Reason:
    """What ``control``, the load test of ``serving`` after the one that ``judged`` says
    no to, tells of why. ``earlier``: what ``serving`` did when it was promoted.

    Not passed where it is not the release: ``gate.node`` where ``serving`` is slower than
    it was, ``gate.bound`` where it keeps to the bound no better.
    """
    alike = f"{serving}, loaded alike in the same minutes,"
    if not control.validity.judges("error_rate"):
        return Reason(*SAID, passed=True, text=f"{alike} could not be judged: {control.validity.why}")
    broken = [reason.name for reason in judged.reasons if _by_figure(reason)]
    kept = [*_kept(broken, load, control, slo, max_regression)]
    if kept:
        return Reason(*SAID, passed=True, text=f"{alike} keeps to {', '.join(kept)}: it is the release")
    figures = [(figure, bound) for figure, bound in slo.bounds() if figure.bound in broken]
    slower = [*_slower(figures, control, earlier)]
    if slower or not figures:
        was = f": {', '.join(slower)}" if slower else ""
        text = f"{alike} does no better, and did when it was promoted{was}"
        return Reason(*SAID, passed=False, text=text, code="gate.node")
    seen = ", ".join(_value(figure, control) for figure, _ in figures)
    known = "as when it was promoted" if earlier else "what it did when it was promoted is not kept"
    text = f"{alike} breaks it too, {known}: {seen}"
    return Reason(*SAID, passed=False, text=text, code="gate.bound")


def _by_figure(reason: Reason) -> bool:
    return reason.gate == "throughput" and not reason.passed and reason.code != NOT_VALID


def _kept(
    broken: list[str], load: LoadReport, control: LoadReport, slo: Slo, max_regression: float | None
) -> Iterator[str]:
    """The bounds that ``control`` keeps to; the regressions that ``load`` has beside it
    too.
    """
    yield from (r.name for r in judge(None, control, slo).reasons if r.name in broken and r.passed)
    if max_regression is not None and comparable(load, control) is None:
        for found in compare(load, control, max_regression):
            if found.outcome == "regressed" and (name := f"{found.figure.name} regression") in broken:
                yield name


def _slower(figures: list[tuple[Figure, float]], control: LoadReport, earlier: LoadReport | None) -> Iterator[str]:
    for figure, _ in figures:
        now, before = control.value(figure), earlier.value(figure) if earlier else None
        if not now or not before:
            continue
        if (now / before if figure.metric.worse == "above" else before / now) > SLOWER:
            yield f"{_value(figure, control)}, then {shown(before, figure.metric.unit)}"


def _value(figure: Figure, load: LoadReport) -> str:
    value = load.value(figure)
    return f"{figure.title} {'none' if value is None else shown(value, figure.metric.unit)}"
