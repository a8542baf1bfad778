"""Plots of a load test as Vega-Lite charts: each panel for itself (a page lays them out),
or all in one picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from model_delivery.measure.capacity import Capacity
from model_delivery.measure.metrics import SPREAD, LoadReport
from model_delivery.values.metrics import LATENCIES

SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"
BLUE, TEAL, RED, GREY = "#2563eb", "#0f766e", "#c2410c", "#64748b"
PLOTTED = [metric for metric in LATENCIES if metric.plotted]
VERDICT = {"domain": ["holds", "breaks"], "range": [TEAL, RED]}
Chart = dict[str, Any]


def panels(load: LoadReport, capacity: Capacity | None = None) -> list[Chart]:
    """The capacity's curve; how TTFT and ITL are distributed and go over time, output,
    errors, the servers' gauges.
    """
    charts = [*(_capacity(capacity) if capacity else ()), *_distributions(load), *_over_time(load), *_gauges(load)]
    return [{"width": 300, "height": 170, **chart} for chart in charts]


def picture(panels: Sequence[Chart], title: str) -> Chart:
    """All ``panels`` in rows of three."""
    whole = {"columns": 3, "concat": list(panels), "resolve": {"scale": {"color": "independent"}}}
    return _page(12) | {"title": {"text": title, "anchor": "start"}} | whole


def alone(panel: Chart) -> Chart:
    return _page(8) | panel


def _page(padding: int) -> Chart:
    return {"$schema": SCHEMA, "background": "white", "padding": padding}


def _distributions(load: LoadReport) -> Iterator[Chart]:
    for metric in PLOTTED:
        row = load.latencies.get(metric.key)
        if row is None:
            continue
        rows = [{"ms": ms, "share": 100 * share} for ms, share in load.curves.get(metric.key, [])]
        rule = {
            "mark": {"type": "rule", "strokeDash": [4, 4], "color": RED},
            "data": {"values": [{"p": row.p95}]},
            "encoding": {"x": {"field": "p", "type": "quantitative"}},
        }
        axes = _axes("ms", f"{metric.title} (ms)", "share", "% of values not above")
        title = f"{metric.title}: p50 {row.p50:,.1f}, p95 {row.p95:,.1f} ms"
        yield _chart(title, rows, layer=[{"mark": {"type": "line", "color": BLUE}, "encoding": axes}, rule])


def _over_time(load: LoadReport) -> Iterator[Chart]:
    for metric in PLOTTED:
        rows = [
            {"s": moment.at, "ms": ms, "of": f"p{percent}"}
            for moment in load.timeline
            for percent in SPREAD
            if (ms := getattr(moment, f"{metric.key}_p{percent}")) is not None
        ]
        if rows:
            axes = _axes("s", "second", "ms", "ms")
            yield _lines(f"{metric.title} over time", rows, axes, (BLUE, RED))
    rows = [{"s": moment.at, "rate": moment.tokens_per_second, "n": moment.errors} for moment in load.timeline]
    title = f"{load.output_tokens_per_second:,.1f} output tokens/s"
    axes = _axes("s", "second", "rate", "output tokens/s")
    yield _chart(title, rows, mark={"type": "area", "color": TEAL, "opacity": 0.7}, encoding=axes)
    if load.errors:
        title = f"{sum(load.errors.values())} errors of {load.requests} requests"
        axes = _axes("s", "second", "n", "requests")
        yield _chart(title, rows, mark={"type": "bar", "color": RED}, encoding=axes)


def _gauges(load: LoadReport) -> Iterator[Chart]:
    states = ("running", "waiting")
    rows = [{"s": g.at, "n": getattr(g, of), "of": of} for pod in load.server for g in pod.gauges for of in states]
    if rows:
        axes = _axes("s", "second of the whole test", "n", "requests")
        yield _lines("The server's own requests", rows, axes, (TEAL, RED))


def _capacity(capacity: Capacity) -> Iterator[Chart]:
    """Throughput and latency against the offered load."""
    rows = [
        {
            "rate": point.rate,
            "out": point.report.requests_per_second,
            "ms": ttft.p95 if (ttft := point.report.latencies.get("ttft")) else None,
            "holds": "holds" if point.holds else "breaks",
        }
        for point in capacity.points
    ]
    for title, y, unit in (
        ("Throughput against load", "out", "good requests/s"),
        ("TTFT p95 against load", "ms", "ms"),
    ):
        axes = _axes("rate", "offered requests/s", y, unit)
        dots = {"mark": {"type": "point", "filled": True, "size": 60}, "encoding": axes | _colour("holds", VERDICT)}
        line = {"mark": {"type": "line", "color": GREY}, "encoding": axes}
        yield _chart(title, (row for row in rows if row[y] is not None), layer=[line, dots])


def _lines(title: str, rows: list[Chart], axes: Chart, colours: tuple[str, str]) -> Chart:
    encoding = axes | _colour("of", {"range": list(colours)})
    return _chart(title, rows, mark={"type": "line", "point": len(rows) < 40}, encoding=encoding)


def _chart(title: str, rows: Iterable[Chart], **drawn: Any) -> Chart:
    return {"title": title, "data": {"values": list(rows)}, **drawn}


def _colour(field: str, scale: Chart) -> Chart:
    legend = {"title": None, "orient": "bottom"}
    return {"color": {"field": field, "type": "nominal", "scale": scale, "legend": legend}}


def _axes(x: str, x_title: str, y: str, y_title: str) -> Chart:
    return {
        axis: {"field": field, "type": "quantitative", "title": title, "scale": {"zero": True}}
        for axis, field, title in (("x", x, x_title), ("y", y, y_title))
    }
