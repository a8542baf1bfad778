"""What a load test measures: the one table that SLO keys, reports, charts and docs are
made of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class Metric:
    """``unit``: "" is a share; of what is in ms, percentiles are taken. ``worse``: on
    which side of a bound it fails.

    ``default``: that bound, where a spec says none. ``per_request``: a request has one
    value of it. An SLO may have it ``bounded``; it is ``compared`` with the release
    before, ``plotted`` as a distribution and over time, and ``stated`` in a report's one
    sentence.
    """

    key: str
    title: str
    unit: Literal["ms", "tok/s", "req/s", ""]
    meaning: str
    worse: Literal["above", "below"] = "above"
    default: float | None = None
    per_request: bool = True
    bounded: bool = True
    compared: bool = False
    plotted: bool = False
    stated: bool = True


METRICS = (
    Metric(
        "error_rate",
        "error rate",
        "",
        "share of requests that did not end with a finish reason, usage and without an error",
        default=0.0,
        stated=False,
    ),
    Metric(
        "ttft",
        "TTFT",
        "ms",
        "time to first token: from the (intended) start of a request to its first text",
        compared=True,
        plotted=True,
    ),
    Metric(
        "itl",
        "ITL",
        "ms",
        "inter-token latency: between two stream events of one request, each counted",
        per_request=False,
        compared=True,
        plotted=True,
    ),
    Metric(
        "tpot",
        "TPOT",
        "ms",
        "time per output token after the first, by request: (last − first) / (tokens − 1)",
        compared=True,
    ),
    Metric("e2e", "end-to-end", "ms", "from the (intended) start of a request to its end"),
    Metric(
        "first_event",
        "first event",
        "ms",
        "to the first token event, where that had no text (half a character) and so is not TTFT",
        bounded=False,
    ),
    Metric(
        "output_tokens_per_second",
        "output rate",
        "tok/s",
        "output tokens (by the server's usage) that arrived in the measured time",
        "below",
        compared=True,
    ),
    Metric("requests_per_second", "request rate", "req/s", "good requests started in the measured time", "below"),
    Metric("goodput", "goodput", "req/s", "good requests that themselves kept every latency bound of the SLO", "below"),
)
LATENCIES = tuple(metric for metric in METRICS if metric.unit == "ms")
RATES = tuple(metric for metric in METRICS if metric.unit != "ms")


@dataclass(frozen=True)
class Figure:
    """A percentile of a latency, or (``percentile`` is empty) a rate: what a report
    states and an SLO bounds.
    """

    metric: Metric
    percentile: str

    @property
    def name(self) -> str:
        return "_".join(filter(None, (self.metric.key, self.percentile)))

    @property
    def title(self) -> str:
        return f"{self.metric.title} {self.percentile}".rstrip()

    @property
    def bound(self) -> str:
        """Its key in an SLO."""
        return f"{self.name}_{'max' if self.metric.worse == 'above' else 'min'}"

    def words(self, bound: float) -> str:
        """A bound as people read it: ``at most 500 ms``."""
        return f"at {'most' if self.metric.worse == 'above' else 'least'} {shown(bound, self.metric.unit)}"

    @property
    def code(self) -> str:
        """Of the finding that it broke its bound."""
        return f"gate.{self.name.replace('_', '-')}"


FIGURES = {
    figure.name: figure
    for metric in METRICS
    for figure in (
        [Figure(metric, f"p{percent}") for percent in PERCENTILES] if metric in LATENCIES else [Figure(metric, "")]
    )
}
HEADLINES = tuple(figure for figure in FIGURES.values() if figure.metric.bounded and figure.percentile in ("", "p95"))
"""What history keeps of a load test, and what is compared."""


def shown(figure: float, unit: str) -> str:
    """A figure as people read it; a share as percent."""
    if not unit:
        return f"{100 * figure:.4g} %"
    return f"{figure:.4g} {unit}" if figure < 1000 else f"{figure:,.0f} {unit}"
