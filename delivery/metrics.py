"""What a load test measures: one table that SLO keys, reports and docs read; histograms that add up exactly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

BIN_NS = 10_000
PERCENTILES = (50, 90, 95, 99)


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
    Metric("itl", "ITL", "ms", "inter-token latency: between two stream events of one request"),
    Metric("tpot", "TPOT", "ms", "time per output token after the first, by request: (last − first) / (tokens − 1)"),
    Metric("e2e", "end-to-end", "ms", "from the (intended) start of a request to its end"),
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
    Metric("error_rate", "error rate", "", "share of requests that did not end with a finish reason, usage and without an error"),
)


class Histogram:
    """Counts in bins of 10 µs; two of them add up exactly."""

    def __init__(self, bins: Mapping[int, int] | None = None) -> None:
        self.bins: Counter[int] = Counter(bins or {})

    def add(self, nanoseconds: Iterable[int]) -> None:
        self.bins.update(ns // BIN_NS for ns in nanoseconds)

    def merge(self, other: Histogram) -> None:
        self.bins.update(other.bins)

    @property
    def count(self) -> int:
        return self.bins.total()

    def percentile(self, percent: float) -> float:
        """In ms: the smallest value that at least ``percent`` % do not exceed. ValueError when it is empty."""
        if not self.bins:
            raise ValueError("an empty histogram has no percentile")
        rank, seen = max(1, -(-self.count * percent // 100)), 0
        for value in sorted(self.bins):
            seen += self.bins[value]
            if seen >= rank:
                break
        return (value + 0.5) * BIN_NS / 1e6

    def summary(self) -> Summary:
        mean = sum((value + 0.5) * n for value, n in self.bins.items()) * BIN_NS / 1e6 / self.count
        figures = {f"p{percent}": round(self.percentile(percent), 3) for percent in PERCENTILES}
        return Summary(count=self.count, mean=round(mean, 3), max=round((max(self.bins) + 0.5) * BIN_NS / 1e6, 3), **figures)

    def curve(self, points: int = 60) -> list[tuple[float, float]]:
        """The distribution for a plot: (value in ms, share of values not above it)."""
        steps = [100 * (n + 1) / points for n in range(points)]
        return [(round(self.percentile(percent), 3), round(percent / 100, 4)) for percent in steps]


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
    """Was the load generator itself the limit? Lateness of its reader in ms, share of reads that held several events."""

    lag_p99: float
    coalesced: float
    cpu_seconds: float


class LoadReport(_Model):
    """One load test. ``latencies`` by metric key; ``errors`` by kind; ``curves`` and ``timeline`` are for plots.

    ``timeline``: per second of the measured time, output tokens that arrived and requests in flight.
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
    client: Client
    curves: dict[str, list[tuple[float, float]]]
    timeline: list[tuple[int, float, int]]

    def figure(self, key: str) -> float | None:
        """The figure that an SLO key such as ``ttft_p95_max`` or ``error_rate_max`` bounds: ms, per second or a share. None: not measured."""
        name = key.rsplit("_", 1)[0]
        if name in ("output_tokens_per_second", "requests_per_second", "error_rate"):
            return float(getattr(self, name))
        metric, _, percentile = name.rpartition("_")
        summary = self.latencies.get(metric)
        return None if summary is None else float(getattr(summary, percentile))

    def figures(self) -> dict[str, float]:
        """What history keeps."""
        kept = {f"{metric}_p95": summary.p95 for metric, summary in self.latencies.items()}
        rates = {m.key: round(float(getattr(self, m.key)), 4) for m in RATES}
        return kept | rates
