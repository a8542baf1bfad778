"""May the figures of a load test be judged? Pure; every refusal says with which figure."""

from __future__ import annotations

from model_delivery.measure.metrics import LATENCIES, LoadReport, Validity
from model_delivery.values.gates import Slo

LAG_MS = 10.0
LAG_SHARE = 0.05
CPU_SHARE = 0.9
COALESCED = 0.01
STAMPED = 0.99
OTHERS = 0.01
MINIMUM = {"p50": 5, "p90": 10, "p95": 20, "p99": 100}
PER_REQUEST = ("ttft", "tpot", "e2e")


def needed(slo: Slo) -> int:
    """The least number of requests: below it a bounded percentile of the requests is only their worst, or says nothing."""
    bounded = [key.rsplit("_", 1)[0].rpartition("_") for key, value in slo if value is not None]
    return max([MINIMUM.get(percentile, 1) for metric, _, percentile in bounded if metric in PER_REQUEST], default=1)


def bounds(slo: Slo) -> dict[str, float]:
    """The tightest latency bound of each metric in ms: what one request must keep to count for goodput."""
    names = [metric.key for metric in LATENCIES]
    told = {
        key: round(value.seconds * 1000, 6)
        for key, value in slo
        if value is not None and key.partition("_")[0] in names
    }
    return {
        name: min(v for k, v in told.items() if k.startswith(f"{name}_"))
        for name in names
        if any(k.startswith(f"{name}_") for k in told)
    }


def timed(slo: Slo) -> bool:
    """Whether anything is bounded that a slow load generator could falsify: an error rate needs no exact clock."""
    return any(value is not None for key, value in slo if key != "error_rate_max")


def validity(load: LoadReport, slo: Slo, *, shared: bool = False) -> Validity:
    """The first thing that is wrong. ``shared``: others' traffic on this server is expected (a canary's)."""
    for pod in load.server:
        if pod.changed:
            return Validity(kind="server changed", why=f"{pod.url} {pod.changed}")
    if not shared and (said := _others(load)):
        return Validity(kind="contaminated", why=said)
    if timed(slo) and (said := _limited(load)):
        return Validity(kind="client-limited", why=said)
    least = needed(slo)
    if load.requests < least * max(1, len(load.runs)):
        runs = f" in each of {len(load.runs)} runs" if len(load.runs) > 1 else ""
        return Validity(
            kind="too short",
            why=f"{load.requests} requests, at least {least} are needed{runs} for the percentiles that are bounded",
        )
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
