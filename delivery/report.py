"""What is shown of an attempt: JSON for machines, one HTML file for people (offline, with its plots), a PNG, a table in Markdown."""

from __future__ import annotations

import html
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import vl_convert

from delivery.metrics import LATENCIES, LoadReport
from delivery.steps.smoke import SmokeReport
from delivery.verdict import Verdict, shown

STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; } .facts { opacity: .75; overflow-wrap: anywhere; }
.said { display: inline-block; padding: .1rem .6rem; border-radius: 1rem; color: #fff; font-weight: 600; } .passed { background: #1a7f37; } .refused { background: #c62828; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; } .no { color: #c62828; font-weight: 600; } .yes { color: #1a7f37; }
svg { max-width: 100%; height: auto; background: #fff; border-radius: .4rem; } blockquote { margin: 0; padding-left: 1rem; border-left: 3px solid var(--line); }
"""


@dataclass(frozen=True)
class Subject:
    """What was tested."""

    delivery: str
    release: str
    attempt: int
    stage: str
    source: str
    commit: str
    engine: str
    args: tuple[str, ...]
    at: float


@dataclass(frozen=True)
class Written:
    """Where the report lies, and what a run's page shows of it."""

    html: Path
    png: bytes | None
    markdown: str
    figures: dict[str, float]


def write(folder: Path, subject: Subject, smoke: SmokeReport | None, load: LoadReport | None, verdict: Verdict) -> Written:
    """Write report.json, report.html and (of a load test) throughput.png into ``folder``; a report of an earlier stage there is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    chart = throughput_chart(load, subject) if load is not None and load.good else None
    whole = {
        "subject": asdict(subject),
        "passed": verdict.passed,
        "reasons": [asdict(reason) for reason in verdict.reasons],
        "smoke": smoke.model_dump() if smoke else None,
        "throughput": load.model_dump() if load else None,
    }
    (folder / "report.json").write_text(json.dumps(whole, indent=1, ensure_ascii=False), encoding="utf-8")
    png = None if chart is None else vl_convert.vegalite_to_png(chart, scale=2)
    if png is not None:
        (folder / "throughput.png").write_bytes(png)
    page = folder / "report.html"
    page.write_text(to_html(subject, smoke, load, verdict, None if chart is None else vl_convert.vegalite_to_svg(chart)), encoding="utf-8")
    return Written(page, png, to_markdown(subject, smoke, load, verdict), load.figures() if load else {})


def to_markdown(subject: Subject, smoke: SmokeReport | None, load: LoadReport | None, verdict: Verdict) -> str:
    """The verdict as a table, the latencies as another."""
    lines = [
        f"## {'Passed' if verdict.passed else 'Refused'}: {subject.delivery} {subject.release}, {subject.stage}, attempt {subject.attempt}",
        "",
    ]
    lines += ["| gate | check | verdict |", "|---|---|---|"]
    for reason in verdict.reasons:
        text = reason.text.replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {reason.gate} | {'✓' if reason.passed else '✗ **failed**'} {reason.name} | {text} |")
    if load is not None:
        lines += ["", *load_table(load)]
    if smoke is not None and smoke.answer:
        lines += ["", "> " + smoke.answer.replace("\n", "\n> ")]
    return "\n".join(lines)


def load_table(load: LoadReport) -> list[str]:
    """The load test as a Markdown table; latencies in ms."""
    lines = ["| ms | mean | p50 | p90 | p95 | p99 | max | count |", "|---|--:|--:|--:|--:|--:|--:|--:|"]
    for metric in LATENCIES:
        row = load.latencies.get(metric.key)
        if row is not None:
            cells = " | ".join(f"{value:,.1f}" for value in (row.mean, row.p50, row.p90, row.p95, row.p99, row.max))
            lines.append(f"| {metric.title} | {cells} | {row.count:,} |")
    errors = ", ".join(f"{count} × {kind}" for kind, count in sorted(load.errors.items())) or "none"
    rates = f"{load.output_tokens_per_second:,.1f} output tokens/s, {load.requests_per_second:,.2f} requests/s"
    lines += [
        "",
        f"{load.load} ({load.profile}) for {load.seconds:g} s: {rates}, {load.good} of {load.requests} requests good, errors: {errors}",
    ]
    return lines


def throughput_chart(load: LoadReport, subject: Subject) -> dict[str, Any]:
    """A Vega-Lite chart: how TTFT and ITL are distributed, and output tokens over time."""
    panels = []
    for metric in LATENCIES[:2]:
        values = [{"ms": ms, "share": 100 * share} for ms, share in load.curves.get(metric.key, [])]
        p95 = load.latencies[metric.key].p95 if metric.key in load.latencies else 0
        line = {
            "mark": {"type": "line", "color": "#2563eb"},
            "encoding": _axes("ms", f"{metric.title} (ms)", "share", "% of values not above"),
        }
        rule = {
            "mark": {"type": "rule", "strokeDash": [4, 4], "color": "#c2410c"},
            "data": {"values": [{"p": p95}]},
            "encoding": {"x": {"field": "p", "type": "quantitative"}},
        }
        title = (
            f"{metric.title}: p50 {load.latencies[metric.key].p50:,.1f}, p95 {p95:,.1f} ms"
            if metric.key in load.latencies
            else metric.title
        )
        panels.append({"title": title, "width": 250, "height": 180, "data": {"values": values}, "layer": [line, rule]})
    seconds = [{"s": one.at + 0.5, "tokens": one.tokens_per_second} for one in load.timeline]
    bars = {
        "mark": {"type": "bar", "color": "#0f766e", "width": {"band": 0.9}},
        "encoding": _axes("s", "second", "tokens", "output events per second"),
    }
    bars["encoding"]["x"] |= {"bin": {"step": 1}}  # type: ignore[index]
    panels.append(
        {"title": f"{load.output_tokens_per_second:,.1f} output tokens/s", "width": 250, "height": 180, "data": {"values": seconds}, **bars}
    )
    said = f"{subject.delivery} {subject.release}: {load.load}, {load.profile}, {load.good} of {load.requests} requests good"
    schema = "https://vega.github.io/schema/vega-lite/v5.json"
    return {"$schema": schema, "title": {"text": said, "anchor": "start"}, "background": "white", "padding": 12, "hconcat": panels}


def _axes(x: str, x_title: str, y: str, y_title: str) -> dict[str, dict[str, Any]]:
    return {
        "x": {"field": x, "type": "quantitative", "title": x_title, "scale": {"zero": True}},
        "y": {"field": y, "type": "quantitative", "title": y_title, "scale": {"zero": True}},
    }


def to_html(subject: Subject, smoke: SmokeReport | None, load: LoadReport | None, verdict: Verdict, svg: str | None) -> str:
    """One page without any outside request; readable on a phone, in light and in dark."""
    e = html.escape
    said = ("passed", "Passed") if verdict.passed else ("refused", "Refused")
    at = datetime.fromtimestamp(subject.at, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    facts = f"{subject.source}, commit {subject.commit}<br>engine {e(subject.engine)} {e(' '.join(subject.args))}<br>stage {e(subject.stage)}, attempt {subject.attempt}, {at}"
    rows = "".join(
        f'<tr><td class="{"yes" if r.passed else "no"}">{"✓" if r.passed else "✗"}</td><td>{e(r.gate)}</td><td>{e(r.name)}</td><td>{e(r.text)}</td></tr>'
        for r in verdict.reasons
    )
    parts = [
        f'<h1>{e(subject.delivery)} {e(subject.release)} <span class="said {said[0]}">{said[1]}</span></h1><p class="facts">{facts}</p>'
    ]
    parts.append(
        f'<h2>Verdict</h2><div class="wide"><table><tr><th></th><th>gate</th><th>check</th><th>figure and bound</th></tr>{rows}</table></div>'
    )
    if load is not None:
        parts.append(f"<h2>Throughput</h2>{_latency_table(load)}{svg or '<p>No request was good: nothing to plot.</p>'}")
        lag = f"reader lag p99 {load.client.lag_p99:g} ms, {100 * load.client.coalesced:.2g} % of events came together, {load.client.cpu_seconds:g} s of CPU"
        parts.append(f'<p class="facts">The load generator itself: {lag}.</p>')
    if smoke is not None:
        parts.append(f"<h2>Answer</h2><blockquote>{e(smoke.answer) or 'none'}</blockquote>")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{e(subject.delivery)}: {said[1].lower()}</title><style>{STYLE}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>"


def _latency_table(load: LoadReport) -> str:
    head = "".join(f'<th class="n">{name}</th>' for name in ("mean", "p50", "p90", "p95", "p99", "max", "count"))
    rows = ""
    for metric in LATENCIES:
        row = load.latencies.get(metric.key)
        if row is not None:
            cells = "".join(f'<td class="n">{value:,.1f}</td>' for value in (row.mean, row.p50, row.p90, row.p95, row.p99, row.max))
            rows += f'<tr><td title="{html.escape(metric.meaning)}">{metric.title} (ms)</td>{cells}<td class="n">{row.count:,}</td></tr>'
    errors = ", ".join(f"{count} × {html.escape(kind)}" for kind, count in sorted(load.errors.items())) or "none"
    rates = f"{shown(load.output_tokens_per_second, 'tok/s')}, {shown(load.requests_per_second, 'req/s')}, {load.good} of {load.requests} requests good, errors: {errors}"
    return f'<p>{html.escape(load.load)}: {html.escape(load.profile)}, {load.seconds:g} s: {rates}</p><div class="wide"><table><tr><th></th>{head}</tr>{rows}</table></div>'
