"""Plots of a load test as Vega-Lite charts: each panel for itself (a page lays them out),
or all in one picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from model_delivery.measure.capacity import Capacity
from model_delivery.measure.compare import NO_DIFFERENCE, ONE_RUN, Comparison
from model_delivery.measure.metrics import SPREAD, LoadReport
from model_delivery.values.metrics import FIGURES, LATENCIES

SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"
BLUE, TEAL, RED, GREY = "#2563eb", "#0f766e", "#c2410c", "#64748b"
PLOTTED = [metric for metric in LATENCIES if metric.plotted]
VERDICT = {"domain": ["holds", "breaks"], "range": [TEAL, RED]}
SIDES = {"domain": ["A", "B"], "range": [GREY, BLUE]}
MOVES = {"worse": RED, "better": TEAL, NO_DIFFERENCE: GREY, ONE_RUN: "#94a3b8"}
POINTS = 1000  # of a curve that is drawn: a report comes from anywhere
Chart = dict[str, Any]
Axis = tuple[str, str]
SECONDS = ("s", "second")


def panels(load: LoadReport, capacity: Capacity | None = None) -> list[Chart]:
    """The capacity's curve; how TTFT and ITL are distributed and go over time, output,
    errors, the servers' gauges.
    """
    charts = [*(_capacity(capacity) if capacity else ()), *_distributions(load), *_over_time(load), *_gauges(load)]
    return [{"width": 300, "height": 170, **chart} for chart in charts]


def picture(panels: Sequence[Chart], title: str) -> Chart:
    """All ``panels`` in rows of two: a run's page shows it narrow."""
    whole = {"columns": 2, "concat": list(panels), "resolve": {"scale": {"color": "independent"}}}
    return _page(12) | {"title": {"text": title, "anchor": "start"}} | whole


def versus(a: LoadReport, b: LoadReport, found: Sequence[Comparison], title: str) -> Chart:
    """Two load tests in one picture: how far each figure moved beside its noise, and the
    distributions and the output of both.
    """
    sides = {"A": a, "B": b}
    charts = [_moved(found)] if found else []
    for metric in PLOTTED:
        rows = [
            {"ms": ms, "share": 100 * share, "of": of}
            for of, load in sides.items()
            for ms, share in load.curves.get(metric.key, [])[:POINTS]
        ]
        x = ("ms", f"{metric.title} (ms)")
        charts += [_sides(f"{metric.title}", rows, x, ("share", "% of values not above"))] if rows else []
    rows = [
        {"s": m.at, "rate": m.tokens_per_second, "of": of} for of, load in sides.items() for m in load.timeline[:POINTS]
    ]
    charts += [_sides("Output over time", rows, SECONDS, ("rate", "output tokens/s"))] if rows else []
    return picture([{"width": 300, "height": 170, **chart} for chart in charts], title)


def _sides(title: str, rows: list[Chart], x: Axis, y: Axis) -> Chart:
    chart = _chart(title, rows, x, y, mark={"type": "line"})
    chart["encoding"] |= _colour("of", SIDES)
    return chart


def _moved(found: Sequence[Comparison]) -> Chart:
    """Each figure's change in %, ± its noise."""
    rows = [
        {
            "figure": c.figure.title,
            "at": 100 * c.change,
            "low": 100 * ((1 + c.change) / (1 + c.noise) - 1) if c.noise is not None else None,
            "high": 100 * ((1 + c.change) * (1 + c.noise) - 1) if c.noise is not None else None,
            "words": c.words,
        }
        for c in found
    ]
    y = {"y": {"field": "figure", "type": "nominal", "title": None, "sort": None}}
    across = {"field": "at", "type": "quantitative", "title": "change from A to B (%), and its noise"}
    zero = {"data": {"values": [{"at": 0}]}, "mark": {"type": "rule", "color": GREY}, "encoding": {"x": across}}
    colour = _colour("words", {"domain": [*MOVES], "range": [*MOVES.values()]})
    colour["color"]["legend"]["columns"] = 2
    noise = {
        "mark": {"type": "rule", "strokeWidth": 2},
        "encoding": {"x": across | {"field": "low"}, "x2": {"field": "high"}} | y | colour,
    }
    dot = {"mark": {"type": "point", "filled": True, "size": 70}, "encoding": {"x": across} | y | colour}
    return {"title": "What moved", "data": {"values": rows}, "layer": [zero, noise, dot]}


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
        at = {"data": {"values": [{"ms": row.p95}]}, "encoding": {"y": None}}
        rule = {"mark": {"type": "rule", "strokeDash": [4, 4], "color": RED}, **at}
        label = {"mark": {"type": "text", "text": "p95", "color": RED, "dx": 14, "y": 90}, **at}
        title = f"{metric.title}: p50 {row.p50:,.1f}, p95 {row.p95:,.1f} ms"
        layer = [{"mark": {"type": "line", "color": BLUE}}, rule, label]
        yield _chart(title, rows, ("ms", f"{metric.title} (ms)"), ("share", "% of values not above"), layer=layer)


def _over_time(load: LoadReport) -> Iterator[Chart]:
    for metric in PLOTTED:
        rows = [
            {"s": moment.at, "ms": ms, "of": f"p{percent}"}
            for moment in load.timeline
            for percent in SPREAD
            if (ms := getattr(moment, f"{metric.key}_p{percent}")) is not None
        ]
        if rows:
            yield _lines(f"{metric.title} over time", rows, SECONDS, ("ms", "ms"), BLUE)
    rows = [{"s": moment.at, "rate": moment.tokens_per_second, "n": moment.errors} for moment in load.timeline]
    title = f"{load.output_tokens_per_second:,.1f} output tokens/s"
    area = {"type": "area", "color": TEAL, "opacity": 0.7}
    yield _chart(title, rows, SECONDS, ("rate", "output tokens/s"), mark=area)
    if load.errors:
        title = f"{sum(load.errors.values())} errors of {load.requests} requests"
        yield _chart(title, rows, SECONDS, ("n", "requests"), mark={"type": "bar", "color": RED})


def _gauges(load: LoadReport) -> Iterator[Chart]:
    states = ("running", "waiting")
    rows = [{"s": g.at, "n": getattr(g, of), "of": of} for pod in load.server for g in pod.gauges for of in states]
    if rows:
        yield _lines("The server's own requests", rows, ("s", "second of the whole test"), ("n", "requests"), TEAL)


def _capacity(capacity: Capacity) -> Iterator[Chart]:
    """Throughput and latency against the offered load."""
    rows = [
        {
            "rate": point.rate,
            "out": point.report.requests_per_second,
            "ms": point.report.value(FIGURES["ttft_p95"]),
            "holds": "holds" if point.holds else "breaks",
        }
        for point in capacity.points
    ]
    line = {"mark": {"type": "line", "color": GREY}}
    dots = {"mark": {"type": "point", "filled": True, "size": 60}, "encoding": _colour("holds", VERDICT)}
    for title, y in ("Throughput", ("out", "good requests/s")), ("TTFT p95", ("ms", "ms")):
        seen = [row for row in rows if row[y[0]] is not None]
        yield _chart(f"{title} against load", seen, ("rate", "offered requests/s"), y, layer=[line, dots])


def _lines(title: str, rows: list[Chart], x: Axis, y: Axis, colour: str) -> Chart:
    chart = _chart(title, rows, x, y, mark={"type": "line", "point": len(rows) < 40})
    chart["encoding"] |= _colour("of", {"range": [colour, RED]})
    return chart


def _chart(title: str, rows: list[Chart], x: Axis, y: Axis, **drawn: Any) -> Chart:
    """``x`` and ``y``: a field of the ``rows`` and the title of its axis."""
    encoding = {
        axis: {"field": field, "type": "quantitative", "title": name, "scale": {"zero": True}}
        for axis, (field, name) in {"x": x, "y": y}.items()
    }
    return {"title": title, "data": {"values": rows}, "encoding": encoding, **drawn}


def _colour(field: str, scale: Chart) -> Chart:
    legend = {"title": None, "orient": "bottom"}
    return {"color": {"field": field, "type": "nominal", "scale": scale, "legend": legend}}
