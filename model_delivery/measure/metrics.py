"""What a load test measures: one table that SLO keys, reports and docs read; histograms and tallies that add up exactly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

PERCENTILES = (50, 90, 95, 99)
MANTISSA = 11


@dataclass(frozen=True)
class Metric:
    """``unit`` is ms, 1/s or a share; ``worse`` says on which side of a bound it fails."""

    key: str
    title: str
    unit: Literal["ms", "tok/s", "req/s", ""]
    meaning: str
    worse: Literal["above", "below"] = "above"


LATENCIES = (
    Metric("ttft", "TTFT", "ms", "time to first token: from the (intended) start of a request to its first text"),
    Metric("itl", "ITL", "ms", "inter-token latency: between two stream events of one request, each counted"),
    Metric("tpot", "TPOT", "ms", "time per output token after the first, by request: (last − first) / (tokens − 1)"),
    Metric("e2e", "end-to-end", "ms", "from the (intended) start of a request to its end"),
    Metric(
        "first_event",
        "first event",
        "ms",
        "to the first token event, where that had no text (half a character) and so is not TTFT",
    ),
)
RATES = (
    Metric(
        "output_tokens_per_second",
        "output rate",
        "tok/s",
        "output tokens (by the server's usage) that arrived in the measured time",
        "below",
    ),
    Metric("requests_per_second", "request rate", "req/s", "good requests started in the measured time", "below"),
    Metric("goodput", "goodput", "req/s", "good requests that themselves kept every latency bound of the SLO", "below"),
    Metric(
        "error_rate",
        "error rate",
        "",
        "share of requests that did not end with a finish reason, usage and without an error",
    ),
)


class Histogram:
    """Counts of ns in bins of a floating width: 0.1 % of the value or finer, everywhere. Two of them add up exactly."""

    def __init__(self, flat: Sequence[int] = ()) -> None:
        self.bins: Counter[int] = Counter(dict(zip(flat[::2], flat[1::2], strict=True)))

    def add(self, nanoseconds: Iterable[int]) -> None:
        """Negative values count as 0."""
        self.bins.update([bin_of(ns) for ns in nanoseconds])

    def merge(self, other: Histogram) -> None:
        self.bins.update(other.bins)

    def flat(self) -> list[int]:
        """As JSON carries it: bin, count, bin, count…"""
        return list(chain.from_iterable(self.bins.items()))

    @property
    def count(self) -> int:
        return self.bins.total()

    def percentile(self, percent: float) -> float:
        """In ms: the smallest value that at least ``percent`` % do not exceed. ValueError when it is empty."""
        return self.percentiles((percent,))[0]

    def percentiles(self, percents: Sequence[float]) -> list[float]:
        """Several in one pass; ``percents`` ascend."""
        if not self.bins:
            raise ValueError("an empty histogram has no percentile")
        total, found, seen = self.count, list[float](), 0
        wanted = iter([max(1, -(-total * percent // 100)) for percent in percents])
        rank = next(wanted, None)
        for key in sorted(self.bins):
            seen += self.bins[key]
            while rank is not None and seen >= rank:
                found.append(value_of(key) / 1e6)
                rank = next(wanted, None)
        return found

    def total_ms(self) -> float:
        return sum(value_of(key) * n for key, n in self.bins.items()) / 1e6

    def summary(self) -> Summary:
        figures = dict(
            zip(
                (f"p{percent}" for percent in PERCENTILES),
                (round(v, 3) for v in self.percentiles(PERCENTILES)),
                strict=True,
            )
        )
        return Summary(
            count=self.count,
            mean=round(self.total_ms() / self.count, 3),
            max=round(value_of(max(self.bins)) / 1e6, 3),
            **figures,
        )

    def curve(self, points: int = 60) -> list[tuple[float, float]]:
        """The distribution for a plot: (value in ms, share of values not above it)."""
        steps = [100 * (n + 1) / points for n in range(points)]
        return [
            (round(value, 3), round(step / 100, 4)) for value, step in zip(self.percentiles(steps), steps, strict=True)
        ]


def bin_of(ns: int) -> int:
    """The first 11 binary digits of ``ns`` and how many follow, as one number that grows with ``ns``."""
    shift = ns.bit_length() - MANTISSA
    if shift <= 0 or ns < 0:
        return max(0, ns)
    return (shift << MANTISSA) | (ns >> shift)


def value_of(key: int) -> float:
    """The middle of a bin, in ns."""
    shift = key >> MANTISSA
    return ((key & ((1 << MANTISSA) - 1)) + 0.5) * (1 << shift) if shift else float(key)


class Slice:
    """A part of the measured time: token events, errors, requests in flight at its end, and latencies of what happened in it."""

    def __init__(self, told: Mapping[str, Any] | None = None) -> None:
        told = told or {}
        self.tokens: float = told.get("tokens", 0.0)
        self.errors: int = told.get("errors", 0)
        self.in_flight: int = told.get("in_flight", 0)
        self.ttft, self.itl = Histogram(told.get("ttft", ())), Histogram(told.get("itl", ()))

    def merge(self, other: Slice) -> None:
        self.tokens, self.errors, self.in_flight = (
            self.tokens + other.tokens,
            self.errors + other.errors,
            self.in_flight + other.in_flight,
        )
        self.ttft.merge(other.ttft)
        self.itl.merge(other.itl)

    def dump(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "errors": self.errors,
            "in_flight": self.in_flight,
            "ttft": self.ttft.flat(),
            "itl": self.itl.flat(),
        }


class Tally:
    """What was counted, by one process or in one run; two of them add up. ``counts``:

    ``requests`` to start in the measured time, ``good`` ones, those ``within`` the SLO, their ``output`` and ``prompt`` tokens, ``events``,
    ``coalesced`` events; ``sent`` requests and ``generated`` tokens of the whole run, warm-up too; ``stamped`` and ``reads``. ``cpu`` and ``seconds``: of each process, in the measured time.
    """

    def __init__(self, told: Mapping[str, Any] | None = None) -> None:
        told = told or {}
        self.counts: Counter[str] = Counter(told.get("counts", {}))
        self.errors: Counter[str] = Counter(told.get("errors", {}))
        self.tokens_in_time: float = told.get("tokens_in_time", 0.0)
        keys = [*(metric.key for metric in LATENCIES), "lag", "send_lag"]
        self.histograms = {key: Histogram(told.get("histograms", {}).get(key, ())) for key in keys}
        self.slices: dict[int, Slice] = {int(at): Slice(one) for at, one in told.get("slices", {}).items()}
        self.cpu: list[float] = list(told.get("cpu", ()))
        self.seconds: list[float] = list(told.get("seconds", ()))
        self.exact: bool = told.get("exact", True)

    def merge(self, other: Tally) -> None:
        self.counts.update(other.counts)
        self.errors.update(other.errors)
        self.tokens_in_time += other.tokens_in_time
        for key, histogram in other.histograms.items():
            self.histograms[key].merge(histogram)
        for at, one in other.slices.items():
            self.slices.setdefault(at, Slice()).merge(one)
        self.cpu += other.cpu
        self.seconds += other.seconds
        self.exact &= other.exact

    def dump(self) -> dict[str, Any]:
        """Plain JSON, from which ``Tally(…)`` makes an equal one."""
        return {
            "counts": dict(self.counts),
            "errors": dict(self.errors),
            "tokens_in_time": self.tokens_in_time,
            "histograms": {key: h.flat() for key, h in self.histograms.items() if h.bins},
            "slices": {str(at): one.dump() for at, one in self.slices.items()},
            "cpu": self.cpu,
            "seconds": self.seconds,
            "exact": self.exact,
        }


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
    """Was the load generator itself the limit? How late its loop (p99) and its sending (p95) were, in ms, the share of events that were read together
    with another one, CPU in s and, of its busiest process, as a share of a core; ``stamped``: share of reads that the kernel timed.
    """

    lag_p99: float
    coalesced: float
    cpu_seconds: float
    send_lag_p95: float = 0.0
    cpu_share: float = 0.0
    processes: int = 1
    stamped: float = 0.0


class Moment(_Model):
    """A slice of the measured time: ``at`` in s from its begin; latencies in ms, None where nothing happened."""

    at: float
    tokens_per_second: float
    in_flight: int
    errors: int
    ttft_p50: float | None = None
    ttft_p95: float | None = None
    itl_p50: float | None = None
    itl_p95: float | None = None


class Gauges(_Model):
    """The server's own view at one moment of the run; ``at`` in s from its begin. KV cache use as a share."""

    at: float
    running: float
    waiting: float
    kv_use: float


class Pod(_Model):
    """One server over the run, from its own ``/metrics``: what it did by its counters, and how it was. None: it does not tell."""

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
    """One load test. ``latencies`` by metric key; ``errors`` by kind; ``curves`` and ``timeline`` are for plots.

    ``runs``: the figures of each repetition, by ``figures``' names; all else is of all of them together. ``sent`` and ``generated`` count the
    whole test with its warm-ups. ``exact``: every prompt had the asked number of tokens by the server's tokenizer.
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

    def figure(self, key: str) -> float | None:
        """The figure that an SLO key such as ``ttft_p95_max`` or ``error_rate_max`` bounds: ms, per second or a share. None: not measured."""
        name = key.rsplit("_", 1)[0]
        if any(metric.key == name for metric in RATES):
            figure = getattr(self, name)
            return None if figure is None else float(figure)
        metric, _, percentile = name.rpartition("_")
        summary = self.latencies.get(metric)
        return None if summary is None else float(getattr(summary, percentile))

    def figures(self) -> dict[str, float]:
        """What history keeps."""
        kept = {f"{metric}_p95": summary.p95 for metric, summary in self.latencies.items() if metric != "first_event"}
        rates = {m.key: round(float(getattr(self, m.key)), 4) for m in RATES if getattr(self, m.key) is not None}
        return kept | rates


def measured(
    tally: Tally,
    *,
    model: str,
    load: str,
    profile: str,
    seconds: float,
    step: float,
    repeats: int = 1,
    bounded: bool = False,
) -> LoadReport:
    """The report of ``tally``: ``repeats`` runs that took ``seconds`` together, in slices of ``step`` s; ``bounded``: it knows a goodput."""
    counts, told = tally.counts, {metric.key: tally.histograms[metric.key] for metric in LATENCIES}
    if told["first_event"].bins == told["ttft"].bins:
        del told["first_event"]
    told = {key: h for key, h in told.items() if h.bins}
    requests, good = counts["requests"], counts["good"]
    return LoadReport(
        model=model,
        load=load,
        profile=profile,
        seconds=round(seconds, 3),
        requests=requests,
        good=good,
        output_tokens=counts["output"],
        prompt_tokens=counts["prompt"],
        errors=dict(tally.errors),
        latencies={key: h.summary() for key, h in told.items()},
        output_tokens_per_second=round(tally.tokens_in_time / seconds, 3),
        requests_per_second=round(good / seconds, 3),
        error_rate=round((requests - good) / requests, 5) if requests else 1.0,
        goodput=round(counts["within"] / seconds, 3) if bounded else None,
        client=_client(tally, seconds / repeats, repeats),
        sent=counts["sent"],
        generated=counts["generated"],
        exact=tally.exact,
        curves={key: h.curve() for key, h in told.items()},
        timeline=tuple(_moment(at * step, one, step, repeats) for at, one in sorted(tally.slices.items())),
    )


def _client(tally: Tally, seconds: float, repeats: int) -> Client:
    counts, lag, send = tally.counts, tally.histograms["lag"], tally.histograms["send_lag"]
    return Client(
        lag_p99=round(lag.percentile(99), 3) if lag.bins else 0.0,
        send_lag_p95=round(send.percentile(95), 3) if send.bins else 0.0,
        coalesced=round(counts["coalesced"] / max(1, counts["events"]), 5),
        cpu_seconds=round(sum(tally.cpu), 3),
        cpu_share=round(max(tally.cpu, default=0.0) / seconds, 3),
        processes=max(1, len(tally.cpu) // repeats),
        stamped=round(min(1.0, counts["stamped"] / max(1, counts["reads"])), 4),
    )


def _moment(at: float, one: Slice, step: float, repeats: int) -> Moment:
    spread: dict[str, float] = {}
    for key, histogram in (("ttft", one.ttft), ("itl", one.itl)):
        if histogram.bins:
            p50, p95 = histogram.percentiles((50, 95))
            spread |= {f"{key}_p50": round(p50, 3), f"{key}_p95": round(p95, 3)}
    rate, running = one.tokens / step / repeats, round(one.in_flight / repeats)
    return Moment(at=at, tokens_per_second=round(rate, 2), in_flight=running, errors=one.errors, **spread)
