"""A load test's counts and histograms, which add up exactly, and the report that is made
of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Annotated, Literal, Self

from pydantic import Field, PlainSerializer, PlainValidator, TypeAdapter

from model_delivery.base import Part
from model_delivery.values.metrics import HEADLINES, LATENCIES, PERCENTILES, Figure

MANTISSA = 11
PLOTTED = tuple(metric.key for metric in LATENCIES if metric.plotted)
SPREAD = (50, 95)
BETWEEN = ("itl", "tpot")


class Histogram(Counter[int]):
    """Counts of ns in bins of a floating width: 0.1 % of the value or finer.

    Two of them add up exactly, by ``update``.
    """

    def add(self, nanoseconds: Iterable[int]) -> None:
        """Negative values count as 0."""
        self.update(map(bin_of, nanoseconds))

    def percentile(self, percent: float) -> float:
        """In ms: the smallest value that at least ``percent`` % do not exceed; 0 when it
        is empty.
        """
        return self.percentiles((percent,))[0] if self else 0.0

    def percentiles(self, percents: Sequence[float]) -> list[float]:
        """Several in one pass. ValueError when it is empty."""
        if not self:
            raise ValueError("an empty histogram has no percentile")
        keys = sorted(self)
        seen = list(accumulate(self[key] for key in keys))
        ranks = (max(1, -(-seen[-1] * percent // 100)) for percent in percents)
        return [_ms(value_of(keys[bisect_left(seen, rank)])) for rank in ranks]

    def summary(self) -> Summary:
        count = self.total()
        return Summary(
            count=count,
            mean=_ms(sum(value_of(key) * n for key, n in self.items()) / count),
            max=_ms(value_of(max(self))),
            **dict(zip((f"p{percent}" for percent in PERCENTILES), self.percentiles(PERCENTILES), strict=True)),
        )

    def curve(self, points: int = 60) -> list[tuple[float, float]]:
        """The distribution for a plot: (value in ms, share of values not above it)."""
        shares = [(n + 1) / points for n in range(points)]
        values = self.percentiles([100 * share for share in shares])
        return [(value, round(share, 4)) for value, share in zip(values, shares, strict=True)]


def _ms(ns: float) -> float:
    return round(ns / 1e6, 3)


def bin_of(ns: int) -> int:
    """The first 11 binary digits of ``ns`` and how many follow, as one number that grows
    with ``ns``.
    """
    shift = ns.bit_length() - MANTISSA
    if shift <= 0 or ns < 0:
        return max(0, ns)
    return (shift << MANTISSA) | (ns >> shift)


def value_of(key: int) -> float:
    """The middle of a bin, in ns."""
    shift = key >> MANTISSA
    return ((key & ((1 << MANTISSA) - 1)) + 0.5) * (1 << shift) if shift else float(key)


def _histograms(flat: Mapping[str, Sequence[int]]) -> defaultdict[str, Histogram]:
    filled = {key: Histogram(dict(zip(bins[::2], bins[1::2], strict=True))) for key, bins in flat.items()}
    return defaultdict(Histogram, filled)


def _flat(histograms: Mapping[str, Histogram]) -> dict[str, list[int]]:
    """As JSON carries them: bin, count, bin, count…; none that is empty."""
    keys = (*(metric.key for metric in LATENCIES), "lag", "send_lag")
    return {key: list(chain.from_iterable(bins.items())) for key in keys if (bins := histograms.get(key))}


@dataclass
class Slice:
    """A part of the measured time: ``tokens`` that arrived, ``errors``, requests
    ``in_flight`` at its end, latencies of what was in it.
    """

    tokens: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    histograms: Annotated[defaultdict[str, Histogram], PlainValidator(_histograms), PlainSerializer(_flat)] = field(
        default_factory=lambda: defaultdict(Histogram)
    )

    def merge(self, other: Self) -> None:
        self.tokens += other.tokens
        self.counts.update(other.counts)
        for key, histogram in other.histograms.items():
            self.histograms[key].update(histogram)


@dataclass
class Tally(Slice):
    """What was counted, by one process or in one run. ``tokens`` are those of the
    measured time. ``counts``:

    ``requests`` to start in the measured time, ``good`` ones, those ``within`` the SLO,
    their ``output`` and ``prompt`` tokens, ``events``, ``coalesced`` events; ``sent`` and
    ``ended`` requests and ``generated`` tokens of the whole run, warm-up too; ``stamped``
    and ``reads``. ``cpu`` and ``seconds``: of each process, in the measured time.
    ``said``: the server's first words of each kind of error.
    """

    errors: Counter[str] = field(default_factory=Counter)
    said: dict[str, str] = field(default_factory=dict)
    cpu: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    exact: bool = True
    slices: dict[int, Slice] = field(default_factory=dict)

    def merge(self, other: Self) -> None:
        super().merge(other)
        self.errors.update(other.errors)
        self.said = other.said | self.said
        self.cpu += other.cpu
        self.seconds += other.seconds
        self.exact &= other.exact
        for at, part in other.slices.items():
            self.slices.setdefault(at, Slice()).merge(part)

    def complete(self) -> bool:
        """Whether every request that was sent is counted, as good or as an error."""
        counts = self.counts
        return counts["sent"] == counts["ended"] and counts["requests"] == counts["good"] + self.errors.total()


TALLY = TypeAdapter(Tally)
"""Writes a tally as JSON, and reads it back."""


class Summary(Part):
    """All but ``count`` in ms."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


class Client(Part):
    """Was the load generator itself the limit? How late its loop (p99) and its sending
    (p95) were, in ms, the share of events that were read together with another one, CPU
    in s and, of its busiest process, as a share of a core; ``stamped``: share of reads
    that the kernel timed.
    """

    lag_p99: float
    coalesced: float
    cpu_seconds: float
    send_lag_p95: float = 0.0
    cpu_share: float = 0.0
    processes: int = 1
    stamped: float = 0.0


class Moment(Part):
    """A slice of the measured time: ``at`` in s from its begin; latencies in ms, None
    where nothing happened.
    """

    at: float
    tokens_per_second: float
    in_flight: int
    errors: int
    ttft_p50: float | None = None
    ttft_p95: float | None = None
    itl_p50: float | None = None
    itl_p95: float | None = None


class Gauges(Part):
    """The server's own view at one moment of the run; ``at`` in s from its begin.

    KV cache use as a share.
    """

    at: float
    running: float
    waiting: float
    kv_use: float


class Pod(Part):
    """One server over the run, from its own ``/metrics``: what it did by its counters,
    and how it was. None: it does not tell.
    """

    url: str
    requests: float | None
    generated: float | None
    preemptions: float | None
    prefix_hits: float | None
    before: float | None
    changed: str | None
    gauges: tuple[Gauges, ...] = ()


class Validity(Part):
    """Whether the figures can be judged, and if not, why, with figures."""

    kind: Literal["valid", "client-limited", "too short", "server changed", "contaminated", "buffered"] = "valid"
    why: str = ""

    @property
    def valid(self) -> bool:
        return self.kind == "valid"

    def judges(self, metric: str) -> bool:
        """Whether a figure of ``metric`` can be judged: a stream that something buffered
        tells nothing of what is between its tokens.
        """
        return self.valid or (self.kind == "buffered" and metric not in BETWEEN)


class LoadReport(Part):
    """One load test. ``latencies`` by metric key; ``errors`` by kind, and what the server
    ``said`` of it; ``curves`` and ``timeline`` are for plots.

    ``runs``: the figures of each repetition, by ``figures``' names; all else is of all of
    them together. ``sent`` and ``generated`` count the whole test with its warm-ups.
    ``exact``: every prompt had the asked number of tokens by the server's tokenizer.
    """

    model: str
    load: str
    profile: str
    seconds: float
    requests: int
    good: int
    output_tokens: int
    prompt_tokens: int
    errors: dict[str, int]
    said: dict[str, str] = Field(default_factory=dict)
    latencies: dict[str, Summary]
    output_tokens_per_second: float
    requests_per_second: float
    error_rate: float
    goodput: float | None = None
    client: Client
    validity: Validity = Validity()
    server: tuple[Pod, ...] = ()
    runs: tuple[dict[str, float], ...] = ()
    sent: int = 0
    generated: int = 0
    exact: bool = True
    curves: dict[str, list[tuple[float, float]]]
    timeline: tuple[Moment, ...]

    def value(self, figure: Figure) -> float | None:
        """In the metric's unit; None: not measured."""
        source = self.latencies.get(figure.metric.key) if figure.percentile else self
        value: float | None = getattr(source, figure.percentile or figure.name, None)
        return value

    def share_good(self) -> str:
        return f"{self.good} of {self.requests} requests answered in full"

    def error_kinds(self) -> str:
        words = {kind: f" ({said})" for kind, said in self.said.items()}
        return ", ".join(f"{count} × {kind}{words.get(kind, '')}" for kind, count in sorted(self.errors.items()))

    def figures(self) -> dict[str, float]:
        """What history keeps."""
        return {f.name: round(value, 4) for f in HEADLINES if (value := self.value(f)) is not None}


def measured(
    tally: Tally, seconds: float, step: float, repeats: int = 1, *, bounded: bool = False, **about: str
) -> LoadReport:
    """The report of ``tally``: ``repeats`` runs that took ``seconds`` together, in slices
    of ``step`` s.

    ``bounded``: it knows a goodput. ``about``: ``model``, ``load`` and ``profile``.
    """
    seconds = max(seconds, 1e-3)
    counts, filled = tally.counts, {m.key: h for m in LATENCIES if (h := tally.histograms[m.key])}
    if filled.get("first_event") == filled.get("ttft"):
        filled.pop("first_event", None)
    requests, good = counts["requests"], counts["good"]
    return LoadReport(
        **about,
        seconds=round(seconds, 3),
        requests=requests,
        good=good,
        output_tokens=counts["output"],
        prompt_tokens=counts["prompt"],
        errors=dict(tally.errors),
        said=tally.said,
        latencies={key: h.summary() for key, h in filled.items()},
        output_tokens_per_second=round(tally.tokens / seconds, 3),
        requests_per_second=round(good / seconds, 3),
        error_rate=round((requests - good) / requests, 5) if requests else 1.0,
        goodput=round(counts["within"] / seconds, 3) if bounded else None,
        client=_client(tally, seconds / repeats, repeats),
        sent=counts["sent"],
        generated=counts["generated"],
        exact=tally.exact,
        curves={key: h.curve() for key, h in filled.items()},
        timeline=tuple(_moment(at * step, part, step, repeats) for at, part in sorted(tally.slices.items())),
    )


def _client(tally: Tally, seconds: float, repeats: int) -> Client:
    counts = tally.counts
    return Client(
        lag_p99=tally.histograms["lag"].percentile(99),
        send_lag_p95=tally.histograms["send_lag"].percentile(95),
        coalesced=round(counts["coalesced"] / max(1, counts["events"]), 5),
        cpu_seconds=round(sum(tally.cpu), 3),
        cpu_share=round(max(tally.cpu, default=0.0) / seconds, 3),
        processes=max(1, len(tally.cpu) // repeats),
        stamped=round(min(1.0, counts["stamped"] / max(1, counts["reads"])), 4),
    )


def _moment(at: float, part: Slice, step: float, repeats: int) -> Moment:
    spread = {
        f"{key}_p{percent}": value
        for key, histogram in part.histograms.items()
        if histogram
        for percent, value in zip(SPREAD, histogram.percentiles(SPREAD), strict=True)
    }
    return Moment(
        at=at,
        tokens_per_second=round(part.tokens / step / repeats, 2),
        in_flight=round(part.counts["in_flight"] / repeats),
        errors=part.counts["errors"],
        **spread,
    )
