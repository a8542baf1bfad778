"""Counts streams as they end; what was to start in the warm-up is not measured."""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise

from model_delivery.loadtests.arrivals import Plan
from model_delivery.loadtests.reader import Stream
from model_delivery.measure.metrics import PLOTTED, Slice, Tally, bin_of
from model_delivery.measure.profile import slice_seconds

SECOND = 1_000_000_000


class Recorder:
    """``open_at`` and ``close_at`` bound the measured time in ns; latencies are of what
    was to start in it.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.tally = Tally()
        self.open_at = self.close_at = 0
        self.running = 0
        self.step = int(slice_seconds(plan.duration) * SECOND)
        self.sent = 0

    def slice(self, at: int) -> Slice:
        return self.tally.slices.setdefault((at - self.open_at) // self.step, Slice())

    def add(self, stream: Stream) -> None:
        """Count one finished stream."""
        tally, failure, tokens, times = self.tally, stream.failure(), stream.tokens, stream.times
        counts = tally.counts
        counts["sent"] += 1
        counts["generated"] += tokens
        bins = [bin_of(late - early) for early, late in pairwise(times)]
        measured = self.open_at <= stream.intended < self.close_at
        if times:
            self._over_time(times, bins, tokens / len(times), good=measured and failure is None)
        if not measured:
            return
        counts["requests"] += 1
        part = self.slice(stream.intended)
        if failure is not None:
            tally.errors[failure] += 1
            part.counts["errors"] += 1
            return
        counts["good"] += 1
        counts["output"] += tokens
        counts["prompt"] += int((stream.usage or {}).get("prompt_tokens") or 0)
        counts["events"] += len(times)
        counts["coalesced"] += stream.coalesced
        ends = {"ttft": stream.first_text, "e2e": stream.end, "first_event": times[0], "send_lag": stream.start}
        latencies = {key: end - stream.intended for key, end in ends.items()}
        if tokens > 1:
            latencies["tpot"] = (times[-1] - times[0]) // (tokens - 1)
        counts["within"] += self._within(latencies, bins)
        tally.histograms["itl"].update(bins)
        for key, ns in latencies.items():
            tally.histograms[key].add([ns])
            if key in PLOTTED:
                part.histograms[key].add([ns])

    def _over_time(self, times: list[int], bins: list[int], share: float, *, good: bool) -> None:
        """Lay the events into the slices in which they came, and into the output rate
        when that was in the measured time.
        """
        first, last = bisect_left(times, self.open_at), bisect_left(times, self.close_at)
        self.tally.tokens += share * (last - first)
        while first < last:
            part, at = self.slice(times[first]), times[first]
            end = min(last, bisect_left(times, at - (at - self.open_at) % self.step + self.step, first))
            part.tokens += share * (end - first)
            if good:
                part.histograms["itl"].update(bins[max(0, first - 1) : end - 1])
            first = end

    def _within(self, latencies: dict[str, int], bins: list[int]) -> bool:
        """Whether the request itself kept every bound; of ITL, by its own 95th
        percentile.
        """
        for key, bound in self.plan.within.items():
            if key == "itl":
                if bins and sorted(bins)[-(-len(bins) * 95 // 100) - 1] > bin_of(int(bound * 1e6)):
                    return False
            elif latencies.get(key, 0) > bound * 1e6:
                return False
        return True

    def watched(self, lag: int, at: int) -> None:
        """The loop was ``lag`` ns late at ``at``: what it cannot read in time it may
        report as the server's latency.
        """
        if self.open_at <= at < self.close_at:
            self.tally.histograms["lag"].add([lag])
            self.slice(at).counts["in_flight"] = self.running

    def finished(self, now: int, cpu: float) -> None:
        """The measured time is over, or ends now because enough was asked; ``cpu``:
        seconds of this process in it.
        """
        self.close_at = max(self.open_at + 1, min(self.close_at, now))
        self.tally.cpu.append(round(cpu, 4))
        self.tally.seconds.append((self.close_at - self.open_at) / SECOND)
