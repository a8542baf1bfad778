"""Plots of a load test as Vega-Lite charts: each panel for itself (a page lays them out), or all of them in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from model_delivery.measure.capacity import Capacity
from model_delivery.measure.metrics import LATENCIES, LoadReport

SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"
BLUE, TEAL, RED, GREY = "#2563eb", "#0f766e", "#c2410c", "#64748b"
Rows = Sequence[dict[str, Any]]


def panels(load: LoadReport, capacity: Capacity | None = None) -> list[dict[str, Any]]:
    """How TTFT and ITL are distributed and go over time, output, requests in flight, errors, the servers' gauges; the capacity's curve."""
    found = [*(_capacity(capacity) if capacity else ()), *_distributions(load), *_over_time(load), *_gauges(load)]
    return [{"width": 300, "height": 170, **panel} for panel in found]


def picture(panels: Sequence[dict[str, Any]], title: str) -> dict[str, Any]:
    """All ``panels`` in rows of three."""
    said = {"text": title, "anchor": "start"}
    whole = {"columns": 3, "concat": list(panels), "resolve": {"scale": {"color": "independent"}}}
    return {"$schema": SCHEMA, "title": said, "background": "white", "padding": 12, **whole}


def alone(panel: dict[str, Any]) -> dict[str, Any]:
    return {"$schema": SCHEMA, "background": "white", "padding": 8, **panel}


def _distributions(load: LoadReport) -> list[dict[str, Any]]:
    found = []
    for metric in LATENCIES[:2]:
        row = load.latencies.get(metric.key)
        if row is None:
            continue
        values = [{"ms": ms, "share": 100 * share} for ms, share in load.curves.get(metric.key, [])]
        rule = {
            "mark": {"type": "rule", "strokeDash": [4, 4], "color": RED},
            "data": {"values": [{"p": row.p95}]},
            "encoding": {"x": {"field": "p", "type": "quantitative"}},
        }
        line = {
            "mark": {"type": "line", "color": BLUE},
            "encoding": _axes("ms", f"{metric.title} (ms)", "share", "% of values not above"),
        }
        title = f"{metric.title}: p50 {row.p50:,.1f}, p95 {row.p95:,.1f} ms"
        found.append({"title": title, "data": {"values": values}, "layer": [line, rule]})
    return found


def _over_time(load: LoadReport) -> list[dict[str, Any]]:
    found = []
    for key, title in (("ttft", "TTFT over time"), ("itl", "ITL over time")):
        rows = [
            {"s": one.at, "ms": getattr(one, f"{key}_{p}"), "of": p}
            for one in load.timeline
            for p in ("p50", "p95")
            if getattr(one, f"{key}_{p}") is not None
        ]
        if rows:
            found.append(_lines(title, rows, "s", "second", "ms", "ms", (BLUE, RED)))
    rows = [{"s": one.at, "rate": one.tokens_per_second} for one in load.timeline]
    output = {
        "mark": {"type": "area", "color": TEAL, "opacity": 0.7},
        "encoding": _axes("s", "second", "rate", "output tokens/s"),
    }
    found.append({"title": f"{load.output_tokens_per_second:,.1f} output tokens/s", "data": {"values": rows}, **output})
    if load.errors:
        errors = [{"s": one.at, "n": one.errors} for one in load.timeline]
        bars = {"mark": {"type": "bar", "color": RED}, "encoding": _axes("s", "second", "n", "requests")}
        found.append(
            {
                "title": f"{sum(load.errors.values())} errors of {load.requests} requests",
                "data": {"values": errors},
                **bars,
            }
        )
    return found


def _gauges(load: LoadReport) -> list[dict[str, Any]]:
    rows = [
        {"s": g.at, "n": getattr(g, of), "of": of}
        for pod in load.server
        for g in pod.gauges
        for of in ("running", "waiting")
    ]
    return (
        [_lines("The server's own requests", rows, "s", "second of the whole test", "n", "requests", (TEAL, RED))]
        if rows
        else []
    )


def _capacity(capacity: Capacity) -> list[dict[str, Any]]:
    """Throughput and latency against the offered load."""
    rows = [
        {"rate": p.rate, "out": p.report.requests_per_second, "holds": "holds" if p.holds else "breaks"}
        for p in capacity.points
    ]
    ttft = [
        {"rate": p.rate, "ms": p.report.latencies["ttft"].p95, "holds": "holds" if p.holds else "breaks"}
        for p in capacity.points
        if "ttft" in p.report.latencies
    ]
    found = []
    for title, values, y, y_title in (
        ("Throughput against load", rows, "out", "good requests/s"),
        ("TTFT p95 against load", ttft, "ms", "ms"),
    ):
        axes = _axes("rate", "offered requests/s", y, y_title)
        scale = {"domain": ["holds", "breaks"], "range": [TEAL, RED]}
        points = {
            "mark": {"type": "point", "filled": True, "size": 60},
            "encoding": axes | {"color": _colour("holds", scale)},
        }
        found.append(
            {
                "title": title,
                "data": {"values": values},
                "layer": [{"mark": {"type": "line", "color": GREY}, "encoding": axes}, points],
            }
        )
    return found


def _lines(
    title: str, rows: Rows, x: str, x_title: str, y: str, y_title: str, colours: tuple[str, str]
) -> dict[str, Any]:
    scale = {"range": list(colours)}
    encoding = _axes(x, x_title, y, y_title) | {"color": _colour("of", scale)}
    return {
        "title": title,
        "data": {"values": list(rows)},
        "mark": {"type": "line", "point": len(rows) < 40},
        "encoding": encoding,
    }


def _colour(field: str, scale: dict[str, Any]) -> dict[str, Any]:
    return {"field": field, "type": "nominal", "scale": scale, "legend": {"title": None, "orient": "bottom"}}


def _axes(x: str, x_title: str, y: str, y_title: str) -> dict[str, dict[str, Any]]:
    return {
        "x": {"field": x, "type": "quantitative", "title": x_title, "scale": {"zero": True}},
        "y": {"field": y, "type": "quantitative", "title": y_title, "scale": {"zero": True}},
    }
