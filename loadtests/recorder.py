"""Collects streams and makes the report of them; what was sent in the warm-up is not counted."""

from __future__ import annotations

import time
from collections import Counter
from itertools import pairwise
from typing import Any

from delivery.metrics import LATENCIES, Client, Histogram, LoadReport
from loadtests.arrivals import Plan
from loadtests.reader import Stream

SECOND = 1_000_000_000


class Recorder:
    """``open_at`` and ``close_at`` bound the measured time in ns; latencies are of the requests that were to start in it."""

    def __init__(self) -> None:
        self.histograms = {metric.key: Histogram() for metric in LATENCIES}
        self.lag = Histogram()
        self.errors: Counter[str] = Counter()
        self.tokens_at: Counter[int] = Counter()
        self.in_flight: dict[int, int] = {}
        self.tokens_in_time = 0.0
        self.requests = self.good = self.output = self.prompt = self.events = self.coalesced = 0
        self.open_at = self.close_at = 0
        self.cpu = time.process_time()

    def measure(self, start: int, end: int) -> None:
        self.open_at, self.close_at, self.cpu = start, end, time.process_time()

    def add(self, stream: Stream) -> None:
        """Count one finished stream."""
        failure = stream.failure()
        usage = stream.usage or {}
        tokens = int(usage.get("completion_tokens") or 0)
        if stream.times and tokens:
            share = tokens / len(stream.times)
            for at in stream.times:
                if self.open_at <= at < self.close_at:
                    self.tokens_in_time += share
                    self.tokens_at[(at - self.open_at) // SECOND] += 1
        if not self.open_at <= stream.intended < self.close_at:
            return
        self.requests += 1
        if failure is not None:
            self.errors[failure] += 1
            return
        self.good += 1
        self.output += tokens
        self.prompt += int(usage.get("prompt_tokens") or 0)
        self.events += len(stream.times)
        self.coalesced += stream.coalesced
        times, add = stream.times, self.histograms
        add["ttft"].add([stream.first_text - stream.intended])
        add["itl"].add([late - early for early, late in pairwise(times)])
        if tokens > 1:
            add["tpot"].add([(times[-1] - times[0]) // (tokens - 1)])
        add["e2e"].add([stream.end - stream.intended])

    def report(self, plan: Plan) -> LoadReport:
        """What was measured, in the shape that gates and reports read."""
        seconds = (self.close_at - self.open_at) / SECOND
        profile: dict[str, Any] = plan.profile
        told = {key: h for key, h in self.histograms.items() if h.count}
        return LoadReport(
            model=plan.model,
            load=f"{plan.users} users" if plan.users else f"{plan.rate:g} requests/s, Poisson",
            profile=f"{profile.get('endpoint', 'chat')}, {profile.get('prompt_tokens', 'given')} tokens in, {profile['output_tokens']} out",
            seconds=round(seconds, 3),
            requests=self.requests,
            good=self.good,
            output_tokens=self.output,
            prompt_tokens=self.prompt,
            errors=dict(self.errors),
            latencies={key: h.summary() for key, h in told.items()},
            output_tokens_per_second=round(self.tokens_in_time / seconds, 3),
            requests_per_second=round(self.good / seconds, 3),
            error_rate=round((self.requests - self.good) / self.requests, 5) if self.requests else 1.0,
            client=Client(
                lag_p99=round(self.lag.percentile(99), 3) if self.lag.count else 0.0,
                coalesced=round(self.coalesced / self.events, 5) if self.events else 0.0,
                cpu_seconds=round(time.process_time() - self.cpu, 3),
            ),
            curves={key: h.curve() for key, h in told.items()},
            timeline=[(s, float(self.tokens_at.get(s, 0)), self.in_flight.get(s, 0)) for s in range(int(seconds + 0.999))],
        )
