"""May the figures of a load test be judged? Pure; every refusal says with which
figure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from model_delivery.measure.metrics import LoadReport, Validity
from model_delivery.values import Slo

CHANGED: Final = "server changed"
LAG_MS = 10.0
LAG_SHARE = 0.05
CPU_SHARE = 0.9
COALESCED = 0.01
STAMPED = 0.99
OTHERS = 0.01
BURST_MS = 0.05
MINIMUM = {"p50": 5, "p90": 10, "p95": 20, "p99": 100}


def needed(slo: Slo) -> int:
    """The least number of requests: below it a bounded percentile of theirs is only their
    worst, or says nothing.
    """
    figures = [figure for figure, _ in slo.bounds() if figure.metric.per_request]
    return max((MINIMUM.get(figure.percentile, 1) for figure in figures), default=1)


def bounds(slo: Slo) -> dict[str, float]:
    """The tightest latency bound of each metric in ms: what one request must keep to
    count for goodput.
    """
    latencies = [(figure.metric.key, bound) for figure, bound in slo.bounds() if figure.percentile]
    return {key: min(bound for other, bound in latencies if other == key) for key, _ in latencies}


def timed(slo: Slo) -> bool:
    """Whether anything is bounded that a slow load generator could falsify: a share needs
    no exact clock.
    """
    return any(figure.metric.unit for figure, _ in slo.bounds())


def validity(load: LoadReport, slo: Slo, *, shared: bool = False) -> Validity:
    """The first thing that is wrong.

    ``shared``: others' traffic on this server is expected (a canary's).
    """
    return next(_faults(load, slo, shared=shared), Validity())


def _faults(load: LoadReport, slo: Slo, *, shared: bool) -> Iterator[Validity]:
    for pod in load.server:
        if pod.changed:
            yield Validity(kind=CHANGED, why=f"{pod.url} {pod.changed}")
    if not shared:
        yield from (Validity(kind="contaminated", why=why) for why in _others(load))
    if timed(slo) and not _in_one_piece(load):
        yield from (Validity(kind="client-limited", why=why) for why in _limits(load))
    least = needed(slo)
    if load.good and load.requests < least * max(1, len(load.runs)):
        runs = f" in each of {len(load.runs)} runs" if len(load.runs) > 1 else ""
        why = f"{load.requests} requests, at least {least} are needed{runs} for the percentiles that are bounded"
        longer = math.ceil(1.2 * load.seconds * least / load.requests)
        why += f": measure for {longer} s" + (" each" if runs else "")
        yield Validity(kind="too short", why=why)
    if (itl := load.latencies.get("itl")) and itl.p50 < BURST_MS:
        why = f"half of all tokens came within {itl.p50:.3g} ms of the one before: something on the way collects them"
        yield Validity(kind="buffered", why=why)


def _in_one_piece(load: LoadReport) -> bool:
    """Whether whole answers came at once, which no lateness of ours makes of longer
    ones.
    """
    tpot, whole = load.latencies.get("tpot"), load.latencies.get("e2e")
    return bool(tpot and whole and tpot.p50 < BURST_MS and whole.p50 > load.client.lag_p99)


def _others(load: LoadReport) -> Iterator[str]:
    if busy := sum(pod.before or 0 for pod in load.server):
        yield f"{busy:g} requests of others ran when the load began"
    seen = sum(pod.requests or 0 for pod in load.server)
    if seen > load.sent * (1 + OTHERS) + 1:
        yield f"the server finished {seen:,.0f} requests, {load.sent:,} were ours"


def _limits(load: LoadReport) -> Iterator[str]:
    client, ttft = load.client, load.latencies.get("ttft")
    bound = max(LAG_MS, LAG_SHARE * ttft.p95 if ttft else 0.0)
    late = f"the bound is {bound:.4g} ms)"
    if client.cpu_share > CPU_SHARE:
        yield f"a process of the load generator used {100 * client.cpu_share:.0f} % of its core"
    if client.send_lag_p95 > bound:
        yield f"requests were sent up to {client.send_lag_p95:.4g} ms late (p95; {late}"
    if client.lag_p99 > bound and (client.stamped < STAMPED or client.coalesced > COALESCED):
        together = f"{100 * client.coalesced:.2g} % of the events were read together with others"
        yield f"its loop was up to {client.lag_p99:.4g} ms late (p99; {late}, and {together}"
