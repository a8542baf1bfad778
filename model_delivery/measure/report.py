"""What is shown of an attempt: JSON and Prometheus text for machines, one HTML file for people (offline, with its plots), a PNG, a table in Markdown."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import vl_convert
from pydantic import BaseModel, ConfigDict, ValidationError

from model_delivery.measure import charts
from model_delivery.measure.capacity import Capacity
from model_delivery.measure.metrics import LATENCIES, PERCENTILES, RATES, LoadReport
from model_delivery.measure.smoke import SmokeReport
from model_delivery.measure.verdict import Reason, Verdict, shown

STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 68rem; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; } .facts { opacity: .75; overflow-wrap: anywhere; }
.said { display: inline-block; padding: .1rem .6rem; border-radius: 1rem; color: #fff; font-weight: 600; } .passed { background: #1a7f37; } .refused { background: #c62828; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; } .no { color: #c62828; font-weight: 600; } .yes { color: #1a7f37; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: .8rem; margin: 1rem 0; } .plots figure { margin: 0; background: #fff; border-radius: .4rem; }
td:last-child:not(.n) { min-width: 12rem; } svg { width: 100%; height: auto; display: block; } blockquote { margin: 0; padding-left: 1rem; border-left: 3px solid var(--line); }
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

    def facts(self) -> list[str]:
        at = datetime.fromtimestamp(self.at, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        model = f"{self.source}, commit {self.commit}" if self.commit else ""
        engine = f"engine {self.engine} {' '.join(self.args)}" if self.engine else ""
        return [line for line in (model, engine, f"stage {self.stage}, attempt {self.attempt}, {at}") if line]


class Report(BaseModel):
    """``report.json``, as docs/report.schema.json describes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    report_version: int = 1
    subject: Subject
    passed: bool
    reasons: tuple[Reason, ...]
    smoke: SmokeReport | None = None
    throughput: LoadReport | None = None
    capacity: Capacity | None = None


@dataclass(frozen=True)
class Written:
    """Where the report lies, and what a run's page shows of it."""

    html: Path
    png: bytes | None
    markdown: str
    figures: dict[str, float]


def write(
    folder: Path,
    subject: Subject,
    smoke: SmokeReport | None,
    load: LoadReport | None,
    verdict: Verdict,
    capacity: Capacity | None = None,
) -> Written:
    """Write report.json, report.html and (of a load test) metrics.prom and throughput.png into ``folder``; an earlier stage's are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    panels = charts.panels(load, capacity) if load is not None and load.good else []
    whole = Report(
        subject=subject, passed=verdict.passed, reasons=verdict.reasons, smoke=smoke, throughput=load, capacity=capacity
    )
    (folder / "report.json").write_text(whole.model_dump_json(indent=1), encoding="utf-8")
    png = None
    if load is not None:
        (folder / "metrics.prom").write_text(to_prometheus(load), encoding="utf-8")
    if load is not None and panels:
        said = f"{subject.delivery} {subject.release}: {load.load}, {load.profile}, {load.good} of {load.requests} requests good"
        png = vl_convert.vegalite_to_png(charts.picture(panels, said), scale=2)
        (folder / "throughput.png").write_bytes(png)
    page = folder / "report.html"
    drawn = [vl_convert.vegalite_to_svg(charts.alone(panel)) for panel in panels]
    page.write_text(to_html(whole, drawn), encoding="utf-8")
    return Written(page, png, to_markdown(whole), load.figures() if load else {})


def read(page: Path) -> LoadReport | None:
    """The load test of the report whose HTML file is ``page``; None when there is none any more, or it was of another version."""
    try:
        return load_test(page.with_name("report.json").read_bytes())
    except OSError:
        return None


def load_test(content: bytes) -> LoadReport | None:
    """The load test of a report.json; None when it holds none, or is of another version."""
    try:
        return Report.model_validate_json(content).throughput
    except ValidationError:
        return None


def to_markdown(whole: Report) -> str:
    """The verdict as a table, the latencies as another."""
    subject, load = whole.subject, whole.throughput
    said = "Passed" if whole.passed else "Refused"
    lines = [f"## {said}: {subject.delivery} {subject.release}, {subject.stage}, attempt {subject.attempt}", ""]
    lines += ["| gate | check | verdict |", "|---|---|---|"]
    for reason in whole.reasons:
        text = reason.text.replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {reason.gate} | {'✓' if reason.passed else '✗ **failed**'} {reason.name} | {text} |")
    if load is not None:
        head, rows = load_table(load)
        lines += [
            "",
            f"| {' | '.join(head)} |",
            f"|---|{'--:|' * (len(head) - 1)}",
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
        ]
        lines.append(summary(load))
    if whole.smoke is not None and whole.smoke.answer:
        lines += ["", "> " + whole.smoke.answer.replace("\n", "\n> ")]
    return "\n".join(lines)


def load_table(load: LoadReport) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the latencies, in ms."""
    head = ["ms", "mean", *(f"p{percent}" for percent in PERCENTILES), "max", "count"]
    rows = []
    for metric in LATENCIES:
        row = load.latencies.get(metric.key)
        if row is not None:
            figures = (row.mean, row.p50, row.p90, row.p95, row.p99, row.max)
            rows.append([metric.title, *(f"{value:,.1f}" for value in figures), f"{row.count:,}"])
    return head, rows


def summary(load: LoadReport) -> str:
    """Load, rates and errors in a sentence."""
    errors = ", ".join(f"{count} × {kind}" for kind, count in sorted(load.errors.items())) or "none"
    rates = [
        f"{shown(float(getattr(load, m.key)), m.unit)} {m.title}" for m in RATES[:3] if getattr(load, m.key) is not None
    ]
    exact = "" if load.exact else " (prompt lengths are approximate: the server has no tokenizer to ask)"
    return f"{load.load} ({load.profile}) for {load.seconds:g} s: {', '.join(rates)}; {load.good} of {load.requests} requests good, errors: {errors}{exact}"


def client_line(load: LoadReport) -> str:
    """How the load generator itself was."""
    c = load.client
    stamps = f"{100 * c.stamped:.4g} % of the reads timed by the kernel"
    lag = f"loop late by {c.lag_p99:.3g} ms (p99), sending by {c.send_lag_p95:.3g} ms (p95)"
    return f"{stamps}, {100 * c.coalesced:.2g} % of the events read together, {lag}, {c.processes} process(es), {c.cpu_seconds:.3g} s of CPU"


def to_prometheus(load: LoadReport) -> str:
    """The figures in Prometheus' text format; latencies in s, as its conventions want."""
    lines = []
    label = load.model.replace("\\", "\\\\").replace('"', '\\"')
    for metric in LATENCIES:
        row = load.latencies.get(metric.key)
        if row is None:
            continue
        name = f"model_delivery_{metric.key}_seconds"
        lines += [f"# HELP {name} {metric.meaning}", f"# TYPE {name} summary"]
        lines += [
            f'{name}{{model="{label}",quantile="{p / 100:g}"}} {getattr(row, f"p{p}") / 1000:.6f}' for p in PERCENTILES
        ]
        lines += [
            f'{name}_sum{{model="{label}"}} {row.mean * row.count / 1000:.6f}',
            f'{name}_count{{model="{label}"}} {row.count}',
        ]
    for metric in RATES:
        if getattr(load, metric.key) is not None:
            name = f"model_delivery_{metric.key}"
            lines += [
                f"# HELP {name} {metric.meaning}",
                f"# TYPE {name} gauge",
                f'{name}{{model="{label}"}} {getattr(load, metric.key)}',
            ]
    return "\n".join(lines) + "\n"


def to_html(whole: Report, drawn: Sequence[str] = ()) -> str:
    """One page without any outside request; readable on a phone, in light and in dark. ``drawn``: its plots as SVG."""
    e, subject, load = html.escape, whole.subject, whole.throughput
    said = ("passed", "Passed") if whole.passed else ("refused", "Refused")
    title = f"{subject.delivery} {subject.release}".strip()
    parts = [
        f'<h1>{e(title)} <span class="said {said[0]}">{said[1]}</span></h1><p class="facts">{"<br>".join(map(e, subject.facts()))}</p>'
    ]
    rows = [("✓" if r.passed else "✗", r.gate, r.name, r.text) for r in whole.reasons]
    parts.append("<h2>Verdict</h2>" + _table(["", "gate", "check", "figure and bound"], rows))
    if whole.capacity is not None:
        parts.append(_capacity(whole.capacity))
    if load is not None:
        plots = "".join(f"<figure>{svg}</figure>" for svg in drawn) or "<p>No request was good: nothing to plot.</p>"
        parts.append(
            f"<h2>Throughput</h2><p>{e(summary(load))}</p>{_table(*load_table(load))}<div class=plots>{plots}</div>"
        )
        valid = f"The measurement is {e(load.validity.kind)}{': ' if load.validity.why else ''}{e(load.validity.why)}."
        parts.append(
            f"<h2>Validity</h2><p>{valid}</p><p class=facts>The load generator itself: {e(client_line(load))}.</p>{_pods(load)}"
        )
    if whole.smoke is not None:
        parts.append(f"<h2>Answer</h2><blockquote>{e(whole.smoke.answer) or 'none'}</blockquote>")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{e(title)}: {said[1].lower()}</title><style>{STYLE}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of numbers stand right."""
    numeric = [
        any(map(str.isdigit, "".join(column))) and not any(map(str.isalpha, "".join(column)))
        for column in zip(*rows, strict=True)
    ]

    def cell(tag: str, at: int, text: str) -> str:
        mark = {"✓": "yes", "✗": "no"}.get(text, "n" if numeric[at] else "")
        return f'<{tag} class="{mark}">{html.escape(text)}</{tag}>'

    lines = ["".join(cell("th", at, text) for at, text in enumerate(head))] if rows else []
    lines += ["".join(cell("td", at, text) for at, text in enumerate(row)) for row in rows]
    return f'<div class="wide"><table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def _pods(load: LoadReport) -> str:
    def told(value: float | None, unit: str = "") -> str:
        return "" if value is None else f"{100 * value:.3g} %" if unit else f"{value:,.0f}"

    rows = [
        [
            pod.url,
            told(pod.requests),
            told(pod.generated),
            told(pod.preemptions),
            told(pod.prefix_hits, "%"),
            told(max((g.running for g in pod.gauges), default=None)),
            told(max((g.waiting for g in pod.gauges), default=None)),
            told(max((g.kv_use for g in pod.gauges), default=None), "%"),
        ]
        for pod in load.server
    ]
    head = ["server", "requests", "tokens", "preemptions", "prefix hits", "most running", "most waiting", "most KV use"]
    return (
        _table(head, rows)
        if rows
        else "<p class=facts>The server tells nothing of itself: whether others used it is not known.</p>"
    )


def _capacity(capacity: Capacity) -> str:
    held = f"{capacity.rate:.3g} requests/s hold the SLO" if capacity.rate else "No rate that was tried holds the SLO"
    rows = []
    for point in capacity.points:
        report = point.report
        ttft, itl = (f"{row.p95:,.1f}" if (row := report.latencies.get(key)) else "" for key in ("ttft", "itl"))
        rates = [f"{report.requests_per_second:.3g}", f"{report.output_tokens_per_second:,.0f}"]
        rows.append([f"{point.rate:.3g}", *rates, ttft, itl, "✓" if point.holds else "✗", point.why])
    head = ["offered/s", "good/s", "tokens/s", "TTFT p95", "ITL p95", "", "why not"]
    return f"<h2>Capacity</h2><p>{html.escape(held)}; above: {html.escape(capacity.limit)}.</p>{_table(head, rows)}"
