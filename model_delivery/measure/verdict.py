"""The verdict: pure. Every reason in words, with figure and bound."""

from __future__ import annotations

from dataclasses import dataclass

from model_delivery.base import Finding
from model_delivery.measure.compare import CONFIDENCE, ONE_RUN, Comparison, comparable, compare
from model_delivery.measure.metrics import LoadReport
from model_delivery.measure.smoke import Check, SmokeReport
from model_delivery.values import Slo
from model_delivery.values.metrics import Figure, shown

OUTCOMES = {
    "regressed": "regressed: ",
    "not resolved": "too noisy to tell, raise repeats: ",
    "no regression": "",
}
NOT_VALID, ANSWER = "gate.not-valid", "known answer"
UNCOMPARED = "regression"
FIXES = {
    "gate.smoke": "ask it yourself with the same prompt; if the answer is right, correct gates.smoke",
    "gate.replica": "read that pod's log (`kubectl logs POD`), and see its node: the others may answer rightly",
    NOT_VALID: "put right what the reason names, then run it again: nothing is known against the release",
    "gate.node": "see what else runs on the node, then run again: nothing is known against the release",
    "gate.bound": "what serves does not keep to it either: change the bound, or give both more room",
    "gate.regression": "see what the release changed; if it may cost that, raise gates.throughput.max_regression",
}


@dataclass(frozen=True)
class Reason:
    """One thing that was judged; ``figure`` and ``bound`` in the metric's unit, None
    where there are none.

    ``code``: of the finding, where it is not passed.
    """

    gate: str
    name: str
    passed: bool
    text: str
    figure: float | None = None
    bound: float | None = None
    code: str = ""

    @property
    def told(self) -> str:
        """The text beside the name of what was judged, which it need not say again."""
        return self.text.removeprefix(f"{self.name}: ")

    @property
    def fix(self) -> str:
        """What may be done where it is not passed."""
        if self.code == "gate.smoke" and self.name != ANSWER:
            return "read the engine's log, which may say why: `deliver logs`"
        bound = f"change the bound {self.name} (gates.throughput.slo, --slo)"
        return FIXES.get(self.code) or f"load it less, give it more room, or {bound}"


@dataclass(frozen=True)
class Verdict:
    reasons: tuple[Reason, ...]

    @property
    def passed(self) -> bool:
        return all(reason.passed for reason in self.reasons)

    def findings(self) -> tuple[Finding, ...]:
        """Every reason that is not passed."""
        return tuple(Finding(r.code, r.text, f"gate {r.gate}", r.fix) for r in self.reasons if not r.passed)


def judge(
    smoke: SmokeReport | None,
    load: LoadReport | None,
    slo: Slo | None,
    *,
    baseline: LoadReport | str | None = None,
    max_regression: float | None = None,
) -> Verdict:
    """Passed when every smoke check and every bound of ``slo`` holds; what was not
    measured fails its bound.

    Figures that are not valid are not judged: that they are not is the one reason. Of a
    buffered stream those between its tokens are not.
    ``baseline``: the load test of the release before, than which no metric may be worse
    by more than ``max_regression`` (a share); or why there is none to compare with.
    """
    checks = smoke.checks if smoke else ()
    reasons = [_smoked(check) for check in checks]
    if load and not load.validity.judges("error_rate"):
        text = f"the load test cannot be judged, it is {load.validity.kind}: {load.validity.why}{_unjudged(load, slo)}"
        reasons.append(Reason("throughput", "validity", passed=False, text=text, code="gate.not-valid"))
    elif load and slo:
        reasons += (_bound(load, figure, bound) for figure, bound in slo.bounds())
        if baseline and max_regression is not None:
            reasons += _regressions(load, baseline, max_regression)
    return Verdict(tuple(reasons))


def _smoked(check: Check) -> Reason:
    text = f"{check.name}: {check.detail}"
    if check.replica:
        return Reason("smoke", check.name, check.passed, text, code="gate.replica")
    return Reason("smoke", check.name, check.passed, text, code="gate.smoke")


def _unjudged(load: LoadReport, slo: Slo | None) -> str:
    """What was seen of the bounds that it cannot break."""
    seen = [
        f"{figure.title} {'none' if (value := load.value(figure)) is None else shown(value, figure.metric.unit)}"
        f" ({figure.words(bound)})"
        for figure, bound in (slo.bounds() if slo else ())
    ]
    return f"; seen, and not judged: {', '.join(seen)}" if seen else ""


def _regressions(load: LoadReport, baseline: LoadReport | str, allowed: float) -> list[Reason]:
    try:
        why = baseline if isinstance(baseline, str) else comparable(load, baseline)
        if not isinstance(baseline, str) and why is None:
            return [regression(comparison, allowed) for comparison in compare(load, baseline, allowed)]
    except (ArithmeticError, ValueError):
        why = "no load test has such figures"
    text = f"not compared with the release before: {why}"
    return [Reason("throughput", UNCOMPARED, passed=True, text=text)]


def regression(c: Comparison, allowed: float) -> Reason:
    """What the gate says of one figure."""
    side = "worse" if c.worse >= 0 else "better"
    certainty = ONE_RUN
    if c.noise is not None:
        certainty = f"noise bound {100 * c.noise:.2g} % at {100 * CONFIDENCE:.0f} % confidence"
    before, after = (shown(value, c.figure.metric.unit) for value in (c.before, c.after))
    text = (
        f"{OUTCOMES[c.outcome]}{c.figure.title} {after}, before {before}: {100 * abs(c.worse):.3g} % {side}, "
        f"{100 * allowed:.3g} % is allowed ({certainty})"
    )
    passed, name = c.outcome != "regressed", f"{c.figure.name} regression"
    return Reason("throughput", name, passed, text, c.worse, allowed, "gate.regression")


def _bound(load: LoadReport, figure: Figure, bound: float) -> Reason:
    metric, value = figure.metric, load.value(figure)
    if not load.validity.judges(metric.key):
        text = f"{figure.title} cannot be judged, the stream is {load.validity.kind}: {load.validity.why}"
        return Reason("throughput", figure.bound, passed=False, text=text, code="gate.not-valid")
    if value is None:
        text, over = f"{figure.title} was not measured: no good request", True
    else:
        over, side = (value > bound, "over") if metric.worse == "above" else (value < bound, "under")
        wanted = f"{side} the bound of {shown(bound, metric.unit)}" if over else f"as wanted, {figure.words(bound)}"
        text = f"{figure.title} {shown(value, metric.unit)} is {wanted}"
    if metric.key == "error_rate" and load.errors:
        text += f" ({load.error_kinds()})"
    return Reason("throughput", figure.bound, not over, text, value, bound, figure.code)
