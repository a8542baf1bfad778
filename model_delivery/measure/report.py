"""What is shown of an attempt: JSON and Prometheus text for machines, one HTML file for
people, a PNG, Markdown.
"""

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
from model_delivery.measure.metrics import LoadReport
from model_delivery.measure.smoke import SmokeReport
from model_delivery.measure.verdict import Reason, Verdict
from model_delivery.values.metrics import FIGURES, LATENCIES, PERCENTILES, RATES, shown

STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 68rem; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; } .facts { opacity: .75; }
h1, .facts { overflow-wrap: anywhere; } .passed, .yes { --tone: #1a7f37; } .refused, .no { --tone: #c62828; }
.result { display: inline-block; padding: .1rem .6rem; border-radius: 1rem; color: #fff; background: var(--tone); }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.yes, td.no { color: var(--tone); } .result, .no { font-weight: 600; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: .8rem; }
.plots { margin: 1rem 0; } .plots figure { margin: 0; background: #fff; border-radius: .4rem; }
td:last-child:not(.n) { min-width: 12rem; } svg { width: 100%; height: auto; display: block; }
blockquote { margin: 0; padding-left: 1rem; border-left: 3px solid var(--line); }
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
    """Write report.json, report.html and (of a load test) metrics.prom and throughput.png
    into ``folder``.

    An earlier stage's are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    panels = charts.panels(load, capacity) if load is not None and load.good else []
    whole = Report(
        subject=subject, passed=verdict.passed, reasons=verdict.reasons, smoke=smoke, throughput=load, capacity=capacity
    )
    (folder / "report.json").write_text(whole.model_dump_json(indent=1), encoding="utf-8")
    png = None
    if load is not None:
        (folder / "metrics.prom").write_text(to_prometheus(load), encoding="utf-8")
        if panels:
            good = f"{load.good} of {load.requests} requests good"
            title = f"{subject.delivery} {subject.release}: {load.load}, {load.profile}, {good}"
            png = vl_convert.vegalite_to_png(charts.picture(panels, title), scale=2)
            (folder / "throughput.png").write_bytes(png)
    page = folder / "report.html"
    drawn = [vl_convert.vegalite_to_svg(charts.alone(panel)) for panel in panels]
    page.write_text(to_html(whole, drawn), encoding="utf-8")
    return Written(page, png, to_markdown(whole), load.figures() if load else {})


def read(page: Path) -> LoadReport | None:
    """The load test of the report whose HTML file is ``page``; None: there is none any
    more, or of another version.
    """
    try:
        return load_test(page.with_name("report.json").read_bytes())
    except OSError:
        return None


def load_test(content: bytes) -> LoadReport | None:
    """The load test of a report.json; None when it holds none, or is of another
    version.
    """
    try:
        return Report.model_validate_json(content).throughput
    except ValidationError:
        return None


def to_markdown(whole: Report) -> str:
    """The verdict as a table, the latencies as another."""
    subject, load = whole.subject, whole.throughput
    result = "Passed" if whole.passed else "Refused"
    rows = [
        (reason.gate, f"{'✓' if reason.passed else '✗ **failed**'} {reason.name}", reason.text)
        for reason in whole.reasons
    ]
    lines = [f"## {result}: {subject.delivery} {subject.release}, {subject.stage}, attempt {subject.attempt}", ""]
    lines += _markdown(("gate", "check", "verdict"), rows, "---")
    if load is not None:
        lines += ["", *_markdown(*load_table(load), "--:"), "", summary(load)]
    if whole.smoke is not None and whole.smoke.answer:
        lines += ["", "> " + whole.smoke.answer.replace("\n", "\n> ")]
    return "\n".join(lines)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]], rule: str) -> list[str]:
    clean = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return [f"| {' | '.join(head)} |", f"|---|{f'{rule}|' * (len(head) - 1)}", *(f"| {' | '.join(r)} |" for r in clean)]


def load_table(load: LoadReport) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the latencies, in ms."""
    columns = ["mean", *(f"p{percent}" for percent in PERCENTILES), "max"]
    rows = [
        [metric.title, *(f"{getattr(row, column):,.1f}" for column in columns), f"{row.count:,}"]
        for metric in LATENCIES
        if (row := load.latencies.get(metric.key))
    ]
    return ["ms", *columns, "count"], rows


def summary(load: LoadReport) -> str:
    """Load, rates and errors in a sentence."""
    values = [(metric, getattr(load, metric.key)) for metric in RATES if metric.stated]
    rates = ", ".join(f"{shown(value, metric.unit)} {metric.title}" for metric, value in values if value is not None)
    exact = "" if load.exact else " (prompt lengths are approximate: the server has no tokenizer to ask)"
    return (
        f"{load.load} ({load.profile}) for {load.seconds:g} s: {rates}; "
        f"{load.good} of {load.requests} requests good, errors: {load.error_kinds() or 'none'}{exact}"
    )


def client_line(load: LoadReport) -> str:
    """How the load generator itself was."""
    c = load.client
    return (
        f"{100 * c.stamped:.4g} % of the reads timed by the kernel, "
        f"{100 * c.coalesced:.2g} % of the events read together, "
        f"loop late by {c.lag_p99:.3g} ms (p99), sending by {c.send_lag_p95:.3g} ms (p95), "
        f"{c.processes} process(es), {c.cpu_seconds:.3g} s of CPU"
    )


def to_prometheus(load: LoadReport) -> str:
    """The figures in Prometheus' text format; latencies in s, as its conventions want."""
    lines: list[str] = []
    escaped = load.model.replace("\\", "\\\\").replace('"', '\\"')
    model = f'model="{escaped}"'
    for metric in LATENCIES:
        if row := load.latencies.get(metric.key):
            name = f"model_delivery_{metric.key}_seconds"
            lines += [f"# HELP {name} {metric.meaning}", f"# TYPE {name} summary"]
            for p in PERCENTILES:
                lines.append(f'{name}{{{model},quantile="{p / 100:g}"}} {getattr(row, f"p{p}") / 1000:.6f}')
            total = f"{row.mean * row.count / 1000:.6f}"
            lines += [f"{name}_sum{{{model}}} {total}", f"{name}_count{{{model}}} {row.count}"]
    for metric in RATES:
        if (rate := getattr(load, metric.key)) is not None:
            name = f"model_delivery_{metric.key}"
            lines += [f"# HELP {name} {metric.meaning}", f"# TYPE {name} gauge", f"{name}{{{model}}} {rate}"]
    return "\n".join(lines) + "\n"


def to_html(whole: Report, drawn: Sequence[str] = ()) -> str:
    """One page without any outside request; readable on a phone, in light and in dark.

    ``drawn``: its plots as SVG.
    """
    e, subject, load = html.escape, whole.subject, whole.throughput
    result = "Passed" if whole.passed else "Refused"
    title = e(f"{subject.delivery} {subject.release}".strip())
    rows = [("✓" if r.passed else "✗", r.gate, r.name, r.text) for r in whole.reasons]
    parts = [
        f'<h1>{title} <span class="result {result.lower()}">{result}</span></h1>',
        f'<p class="facts">{"<br>".join(map(e, subject.facts()))}</p>',
        f"<h2>Verdict</h2>{_table(['', 'gate', 'check', 'figure and bound'], rows)}",
    ]
    if whole.capacity is not None:
        parts.append(_capacity(whole.capacity))
    if load is not None:
        plots = "".join(f"<figure>{svg}</figure>" for svg in drawn) or "<p>No request was good: nothing to plot.</p>"
        valid = f"The measurement is {e(load.validity.kind)}{': ' if load.validity.why else ''}{e(load.validity.why)}."
        parts += [
            f"<h2>Throughput</h2><p>{e(summary(load))}</p>{_table(*load_table(load))}<div class=plots>{plots}</div>",
            f"<h2>Validity</h2><p>{valid}</p>",
            f"<p class=facts>The load generator itself: {e(client_line(load))}.</p>{_pods(load)}",
        ]
    if whole.smoke is not None:
        parts.append(f"<h2>Answer</h2><blockquote>{e(whole.smoke.answer) or 'none'}</blockquote>")
    return (
        '<!doctype html><html lang=en><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}: {result.lower()}</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>"
    )


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
    def cell(value: float | None, *, share: bool = False) -> str:
        return "" if value is None else f"{100 * value:.3g} %" if share else f"{value:,.0f}"

    rows = [
        [
            pod.url,
            *map(cell, (pod.requests, pod.generated, pod.preemptions)),
            cell(pod.prefix_hits, share=True),
            *(cell(max((getattr(g, of) for g in pod.gauges), default=None)) for of in ("running", "waiting")),
            cell(max((g.kv_use for g in pod.gauges), default=None), share=True),
        ]
        for pod in load.server
    ]
    head = ["server", "requests", "tokens", "preemptions", "prefix hits", "most running", "most waiting", "most KV use"]
    unknown = "<p class=facts>The server tells nothing of itself: whether others used it is not known.</p>"
    return _table(head, rows) if rows else unknown


def _capacity(capacity: Capacity) -> str:
    held = f"{capacity.rate:.3g} requests/s hold the SLO" if capacity.rate else "No rate that was tried holds the SLO"
    figures = [f for f in FIGURES.values() if f.metric.plotted and f.percentile == "p95"]
    rows = [
        [
            f"{point.rate:.3g}",
            f"{point.report.requests_per_second:.3g}",
            f"{point.report.output_tokens_per_second:,.0f}",
            *("" if (ms := point.report.value(f)) is None else f"{ms:,.1f}" for f in figures),
            "✓" if point.holds else "✗",
            point.why,
        ]
        for point in capacity.points
    ]
    head = ["offered/s", "good/s", "tokens/s", *(f.title for f in figures), "", "why not"]
    return f"<h2>Capacity</h2><p>{html.escape(held)}; above: {html.escape(capacity.limit)}.</p>{_table(head, rows)}"
