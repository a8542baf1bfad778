"""A load test's counts and histograms, which add up exactly, and the report that is made
of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, create_model

from model_delivery.values.metrics import HEADLINES, LATENCIES, PERCENTILES, Figure

MANTISSA = 11
PLOTTED = tuple(metric.key for metric in LATENCIES if metric.plotted)
SPREAD = (50, 95)


class Histogram:
    """Counts of ns in bins of a floating width: 0.1 % of the value or finer.

    Two of them add up exactly.
    """

    def __init__(self, flat: Sequence[int] = ()) -> None:
        self.bins: Counter[int] = Counter(dict(zip(flat[::2], flat[1::2], strict=True)))

    def add(self, nanoseconds: Iterable[int]) -> None:
        """Negative values count as 0."""
        self.bins.update(map(bin_of, nanoseconds))

    def merge(self, other: Histogram) -> None:
        self.bins.update(other.bins)

    def flat(self) -> list[int]:
        """As JSON carries it: bin, count, bin, count…"""
        return list(chain.from_iterable(self.bins.items()))

    @property
    def count(self) -> int:
        return self.bins.total()

    def percentile(self, percent: float) -> float:
        """In ms: the smallest value that at least ``percent`` % do not exceed.

        ValueError when it is empty.
        """
        return self.percentiles((percent,))[0]

    def percentiles(self, percents: Sequence[float]) -> list[float]:
        """Several in one pass; ``percents`` ascend."""
        if not self.bins:
            raise ValueError("an empty histogram has no percentile")
        values, seen = list[float](), 0
        wanted = iter([max(1, -(-self.count * percent // 100)) for percent in percents])
        rank = next(wanted, None)
        for key in sorted(self.bins):
            seen += self.bins[key]
            while rank is not None and seen >= rank:
                values.append(round(value_of(key) / 1e6, 3))
                rank = next(wanted, None)
        return values

    def summary(self) -> Summary:
        percentiles = zip(PERCENTILES, self.percentiles(PERCENTILES), strict=True)
        return Summary(
            count=self.count,
            mean=round(sum(value_of(key) * n for key, n in self.bins.items()) / 1e6 / self.count, 3),
            max=round(value_of(max(self.bins)) / 1e6, 3),
            **{f"p{percent}": value for percent, value in percentiles},
        )

    def curve(self, points: int = 60) -> list[tuple[float, float]]:
        """The distribution for a plot: (value in ms, share of values not above it)."""
        shares = [(n + 1) / points for n in range(points)]
        values = self.percentiles([100 * share for share in shares])
        return [(value, round(share, 4)) for value, share in zip(values, shares, strict=True)]


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


class _Sums:
    """What adds up: ``tokens`` that arrived, counters, histograms.

    ``dump`` is JSON, from which an equal one is made.
    """

    keys: ClassVar[tuple[str, ...]]

    def __init__(self, stored: Mapping[str, Any] | None = None) -> None:
        stored = stored or {}
        self.tokens: float = stored.get("tokens", 0.0)
        self.counts: Counter[str] = Counter(stored.get("counts", {}))
        self.histograms = {key: Histogram(stored.get("histograms", {}).get(key, ())) for key in self.keys}

    def merge(self, other: Self) -> None:
        self.tokens += other.tokens
        self.counts.update(other.counts)
        for key, histogram in other.histograms.items():
            self.histograms[key].merge(histogram)

    def dump(self) -> dict[str, Any]:
        full = {key: histogram.flat() for key, histogram in self.histograms.items() if histogram.bins}
        return {"tokens": self.tokens, "counts": dict(self.counts), "histograms": full}


class Slice(_Sums):
    """A part of the measured time: tokens, ``errors``, requests ``in_flight`` at its end,
    latencies of what was in it.
    """

    keys = PLOTTED


class Tally(_Sums):
    """What was counted, by one process or in one run. ``tokens`` are those of the
    measured time. ``counts``:

    ``requests`` to start in the measured time, ``good`` ones, those ``within`` the SLO,
    their ``output`` and ``prompt`` tokens, ``events``, ``coalesced`` events; ``sent``
    requests and ``generated`` tokens of the whole run, warm-up too; ``stamped`` and
    ``reads``. ``cpu`` and ``seconds``: of each process, in the measured time.
    """

    keys = (*(metric.key for metric in LATENCIES), "lag", "send_lag")

    def __init__(self, stored: Mapping[str, Any] | None = None) -> None:
        super().__init__(stored)
        stored = stored or {}
        self.errors: Counter[str] = Counter(stored.get("errors", {}))
        self.slices = {int(at): Slice(part) for at, part in stored.get("slices", {}).items()}
        self.cpu: list[float] = list(stored.get("cpu", ()))
        self.seconds: list[float] = list(stored.get("seconds", ()))
        self.exact: bool = stored.get("exact", True)

    def merge(self, other: Self) -> None:
        super().merge(other)
        self.errors.update(other.errors)
        for at, part in other.slices.items():
            self.slices.setdefault(at, Slice()).merge(part)
        self.cpu += other.cpu
        self.seconds += other.seconds
        self.exact &= other.exact

    def dump(self) -> dict[str, Any]:
        slices = {str(at): part.dump() for at, part in self.slices.items()}
        own = {key: getattr(self, key) for key in ("errors", "cpu", "seconds", "exact")}
        return super().dump() | own | {"slices": slices}


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Summary(_Model):
    """All but ``count`` in ms."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


class Client(_Model):
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


class _Moment(_Model):
    """A slice of the measured time: ``at`` in s from its begin; latencies in ms, None
    where nothing happened.
    """

    at: float
    tokens_per_second: float
    in_flight: int
    errors: int


if TYPE_CHECKING:

    class Moment(_Moment):
        def __init__(self, **values: Any) -> None: ...
else:
    Moment = create_model(
        "Moment",
        __base__=_Moment,
        __module__=__name__,
        __doc__=_Moment.__doc__,
        **{f"{key}_p{percent}": (float | None, None) for key in PLOTTED for percent in SPREAD},
    )


class Gauges(_Model):
    """The server's own view at one moment of the run; ``at`` in s from its begin.

    KV cache use as a share.
    """

    at: float
    running: float
    waiting: float
    kv_use: float


class Pod(_Model):
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


class Validity(_Model):
    """Whether the figures can be judged, and if not, why, with figures."""

    kind: Literal["valid", "client-limited", "too short", "server changed", "contaminated"] = "valid"
    why: str = ""

    @property
    def valid(self) -> bool:
        return self.kind == "valid"


class LoadReport(_Model):
    """One load test. ``latencies`` by metric key; ``errors`` by kind; ``curves`` and
    ``timeline`` are for plots.

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
        if not figure.percentile:
            rate: float | None = getattr(self, figure.name)
            return rate
        summary = self.latencies.get(figure.metric.key)
        return None if summary is None else float(getattr(summary, figure.percentile))

    def error_kinds(self) -> str:
        return ", ".join(f"{count} × {kind}" for kind, count in sorted(self.errors.items()))

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
    counts, filled = tally.counts, {m.key: h for m in LATENCIES if (h := tally.histograms[m.key]).bins}
    if filled.keys() >= {"ttft", "first_event"} and filled["first_event"].bins == filled["ttft"].bins:
        del filled["first_event"]
    requests, good = counts["requests"], counts["good"]
    return LoadReport(
        **about,
        seconds=round(seconds, 3),
        requests=requests,
        good=good,
        output_tokens=counts["output"],
        prompt_tokens=counts["prompt"],
        errors=dict(tally.errors),
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
    counts, lag, send = tally.counts, tally.histograms["lag"], tally.histograms["send_lag"]
    return Client(
        lag_p99=lag.percentile(99) if lag.bins else 0.0,
        send_lag_p95=send.percentile(95) if send.bins else 0.0,
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
        if histogram.bins
        for percent, value in zip(SPREAD, histogram.percentiles(SPREAD), strict=True)
    }
    return Moment(
        at=at,
        tokens_per_second=round(part.tokens / step / repeats, 2),
        in_flight=round(part.counts["in_flight"] / repeats),
        errors=part.counts["errors"],
        **spread,
    )
