"""May the figures of a load test be judged? Pure; every refusal says with which
figure.
"""

from __future__ import annotations

from model_delivery.measure.metrics import LoadReport, Validity
from model_delivery.values import Slo

LAG_MS = 10.0
LAG_SHARE = 0.05
CPU_SHARE = 0.9
COALESCED = 0.01
STAMPED = 0.99
OTHERS = 0.01
MINIMUM = {"p50": 5, "p90": 10, "p95": 20, "p99": 100}


def needed(slo: Slo) -> int:
    """The least number of requests: below it a bounded percentile of theirs is only their
    worst, or says nothing.
    """
    return max(
        [MINIMUM.get(figure.percentile, 1) for figure, _ in slo.bounds() if figure.metric.per_request], default=1
    )


def bounds(slo: Slo) -> dict[str, float]:
    """The tightest latency bound of each metric in ms: what one request must keep to
    count for goodput.
    """
    tightest: dict[str, float] = {}
    for figure, bound in slo.bounds():
        if figure.percentile:
            key = figure.metric.key
            tightest[key] = min(bound, tightest.get(key, bound))
    return tightest


def timed(slo: Slo) -> bool:
    """Whether anything is bounded that a slow load generator could falsify: a share needs
    no exact clock.
    """
    return any(figure.metric.unit for figure, _ in slo.bounds())


def validity(load: LoadReport, slo: Slo, *, shared: bool = False) -> Validity:
    """The first thing that is wrong.

    ``shared``: others' traffic on this server is expected (a canary's).
    """
    for pod in load.server:
        if pod.changed:
            return Validity(kind="server changed", why=f"{pod.url} {pod.changed}")
    if not shared and (why := _others(load)):
        return Validity(kind="contaminated", why=why)
    if timed(slo) and (why := _limited(load)):
        return Validity(kind="client-limited", why=why)
    least = needed(slo)
    if load.requests < least * max(1, len(load.runs)):
        runs = f" in each of {len(load.runs)} runs" if len(load.runs) > 1 else ""
        why = f"{load.requests} requests, at least {least} are needed{runs} for the percentiles that are bounded"
        return Validity(kind="too short", why=why)
    return Validity()


def _others(load: LoadReport) -> str:
    busy = sum(pod.before or 0 for pod in load.server)
    if busy:
        return f"{busy:g} requests of others ran when the load began"
    seen = sum(pod.requests or 0 for pod in load.server)
    if seen > load.sent * (1 + OTHERS) + 1:
        return f"the server finished {seen:,.0f} requests, {load.sent:,} were ours"
    return ""


def _limited(load: LoadReport) -> str:
    client = load.client
    if client.cpu_share > CPU_SHARE:
        return f"a process of the load generator used {100 * client.cpu_share:.0f} % of its core"
    ttft = load.latencies.get("ttft")
    bound = max(LAG_MS, LAG_SHARE * ttft.p95 if ttft else 0.0)
    if client.send_lag_p95 > bound:
        return f"requests were sent up to {client.send_lag_p95:.4g} ms late (p95; the bound is {bound:.4g} ms)"
    if client.lag_p99 > bound and (client.stamped < STAMPED or client.coalesced > COALESCED):
        together = f"{100 * client.coalesced:.2g} % of the events were read together with others"
        return f"its loop was up to {client.lag_p99:.4g} ms late (p99; the bound is {bound:.4g} ms), and {together}"
    return ""
