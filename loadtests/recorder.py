"""Counts streams as they end; what was to start in the warm-up is not measured."""

from __future__ import annotations

from bisect import bisect_left
from itertools import pairwise

from model_delivery.loadtests.arrivals import Plan
from model_delivery.measure.metrics import PLOTTED, Slice, Tally, bin_of
from model_delivery.measure.profile import slice_seconds
from model_delivery.measure.reader import Stream

SECOND = 1_000_000_000
ENOUGH, PATIENCE = 10, 3 * SECOND


class Recorder:
    """``open_at`` and ``close_at`` bound the measured time in ns; latencies are of what
    was to start in it.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.tally = Tally()
        self.open_at = self.close_at = 0
        self.running = self.sent = 0
        self.step = int(slice_seconds(plan.duration) * SECOND)
        self.refusal: str | None = ""
        self.refusals = self.began = 0
        self.hopeless, self.refused = False, ""

    def slice(self, at: int) -> Slice:
        return self.tally.slices.setdefault((at - self.open_at) // self.step, Slice())

    def add(self, stream: Stream) -> None:
        """Count one finished stream, once: as good, or as an error of its kind."""
        counts, failure = self.tally.counts, stream.failure()
        counts["ended"] += 1
        self._refused(stream, failure)
        counts["generated"] += stream.tokens
        bins = [bin_of(late - early) for early, late in pairwise(stream.times)]
        measured = self.open_at <= stream.intended < self.close_at
        if stream.times:
            self._over_time(stream.times, bins, stream.tokens / len(stream.times), good=measured and failure is None)
        if not measured:
            return
        counts["requests"] += 1
        if failure is None:
            self._good(stream, bins)
            return
        self.slice(stream.intended).counts["errors"] += 1
        self._failed(failure, stream.said)

    def _failed(self, kind: str, said: str, times: int = 1) -> None:
        self.tally.errors[kind] += times
        if said:
            self.tally.said.setdefault(kind, said)

    def _refused(self, stream: Stream, failure: str | None) -> None:
        """From the first request on nothing but the same refusal: it is hopeless."""
        self.began = self.began or stream.intended
        if failure is None or stream.times or self.refusal not in ("", failure):
            self.refusal = None
            return
        self.refusal, self.refusals, self.refused = failure, self.refusals + 1, stream.said
        self.hopeless = self.refusals >= ENOUGH and stream.end - self.began >= PATIENCE

    def _good(self, stream: Stream, bins: list[int]) -> None:
        tally, times, tokens, part = self.tally, stream.times, stream.tokens, self.slice(stream.intended)
        counts = tally.counts
        counts["good"] += 1
        counts["output"] += tokens
        counts["prompt"] += (stream.usage or {}).get("prompt_tokens", 0)
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
        if self.hopeless and not self.tally.counts["requests"]:  # not even the warm-up was over
            self.tally.counts["requests"], self.open_at = self.refusals, min(self.open_at, self.began)
            self._failed(str(self.refusal), self.refused, self.refusals)
        self.close_at = max(self.open_at + 1, min(self.close_at, now))
        self.tally.cpu.append(round(cpu, 4))
        self.tally.seconds.append((self.close_at - self.open_at) / SECOND)
