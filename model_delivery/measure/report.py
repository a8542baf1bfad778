"""What is shown of an attempt: JSON and Prometheus text for machines, one HTML file for
people, a PNG, Markdown.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

import vl_convert
from pydantic import BaseModel, ValidationError

from model_delivery.base import Part, moment, problems, replace_file, scrub
from model_delivery.measure import charts
from model_delivery.measure.capacity import Capacity
from model_delivery.measure.metrics import LoadReport
from model_delivery.measure.smoke import SmokeReport
from model_delivery.measure.verdict import NOT_VALID, Reason, Verdict
from model_delivery.measure.words import printable
from model_delivery.values.metrics import FIGURES, LATENCIES, PERCENTILES, RATES, shown

MARKS = {"✓": "yes", "✗": "no"}
SPECIAL, LINE = re.compile(r"[\\`*_\[\]<>|~&$#]|(?<=:)//|(?<=www)\."), 4000
PAGE = Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))


VERSION = 1


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
        at = moment(self.at)
        model = f"{self.source}, commit {self.commit}" if self.commit else ""
        engine = f"engine {self.engine} {' '.join(self.args)}" if self.engine else ""
        return [line for line in (model, engine, f"stage {self.stage}, attempt {self.attempt}, {at}") if line]


class Report(Part):
    """``report.json``, as docs/report.schema.json describes it."""

    report_version: int = VERSION
    subject: Subject
    passed: bool
    reasons: tuple[Reason, ...]
    smoke: SmokeReport | None = None
    throughput: LoadReport | None = None
    capacity: Capacity | None = None

    @property
    def result(self) -> str:
        judged = all(reason.code != NOT_VALID for reason in self.reasons)
        return "Passed" if self.passed else "Refused" if judged else "Not judged"


class _Version(BaseModel):
    """What every version of a report says of itself."""

    report_version: int = VERSION


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
    whole = Report(
        subject=subject, passed=verdict.passed, reasons=verdict.reasons, smoke=smoke, throughput=load, capacity=capacity
    )
    replace_file(folder / "report.json", scrub(whole.model_dump_json(indent=1)))
    if load:
        replace_file(folder / "metrics.prom", scrub(to_prometheus(load)))
    panels = charts.panels(load, capacity) if load and load.good else []
    png = None
    if load and panels:
        title = f"{subject.delivery} {subject.release}: {load.load}, {load.profile}, {load.share_good()}"
        png = vl_convert.vegalite_to_png(charts.picture(panels, title), scale=2)
        replace_file(folder / "throughput.png", png)
    page = folder / "report.html"
    drawn = [vl_convert.vegalite_to_svg(charts.alone(panel)) for panel in panels]
    replace_file(page, scrub(to_html(whole, drawn)))
    return Written(page, png, scrub(to_markdown(whole)), load.figures() if load else {})


def parse(content: bytes) -> Report:
    """A report.json. ValueError says why this version cannot read it."""
    try:
        version = _Version.model_validate_json(content).report_version
        if version == VERSION:
            found = Report.model_validate_json(content)
            json.dumps(found.model_dump(), allow_nan=False)
            return found
    except ValidationError as error:
        raise ValueError(printable(problems(error)[0])) from None
    except ValueError:
        raise ValueError("a figure in it is not finite") from None
    raise ValueError(f"report_version is {version}, this version reads {VERSION}")


def to_markdown(whole: Report) -> str:
    """The verdict as a table, the latencies as another. What a model or a server said
    stays text, whatever it looks like.
    """
    subject, load = whole.subject, whole.throughput
    head = f"{whole.result}: {subject.delivery} {subject.release}, {subject.stage}, attempt {subject.attempt}"
    marks = {NOT_VALID: "not judged"}
    rows = [(r.gate, r.name, "✓" if r.passed else marks.get(r.code, "✗ failed"), r.told) for r in whole.reasons]
    lines = [f"## {_plain(head)}", "", *_markdown(("gate", "check", "", "verdict"), rows, "---")]
    if load:
        lines += ["", *_markdown(*load_table(load), "--:"), "", _plain(summary(load))]
    if whole.smoke and whole.smoke.answer:
        lines += ["", *(f"    {printable(line, LINE)}" for line in whole.smoke.answer.splitlines())]
    return "\n".join(lines)


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]], rule: str) -> list[str]:
    first, *others = (f"| {' | '.join(map(_plain, cells))} |" for cells in (head, *rows))
    return [first, f"|---|{f'{rule}|' * (len(head) - 1)}", *others]


def _plain(text: str) -> str:
    """On one line, with nothing that Markdown or HTML would take for its own."""
    return SPECIAL.sub(r"\\\g<0>", printable(text, LINE))


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
    rates = ", ".join(
        f"{shown(rate, metric.unit)} {metric.title}"
        for metric in RATES
        if metric.stated and (rate := getattr(load, metric.key)) is not None
    )
    exact = "" if load.exact else " (prompt lengths are approximate: the server has no tokenizer to ask)"
    return (
        f"{load.load} ({load.profile}) for {load.seconds:g} s: {rates}; "
        f"{load.share_good()}, errors: {load.error_kinds() or 'none'}{exact}"
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
    escaped = printable(load.model).replace("\\", "\\\\").replace('"', '\\"')
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
    rows = [("✓" if r.passed else "✗", r.gate, r.name, r.told) for r in whole.reasons]
    parts = [f"<h2>Verdict</h2>{_table(['', 'gate', 'check', 'figure and bound'], rows)}"]
    if whole.capacity:
        parts.append(_capacity(whole.capacity))
    if load:
        plots = "".join(f"<figure>{svg}</figure>" for svg in drawn) or "<p>No request was good: nothing to plot.</p>"
        valid = ": ".join(filter(None, (load.validity.kind, load.validity.why)))
        parts += [
            f"<h2>Throughput</h2><p>{e(summary(load))}</p>{_table(*load_table(load))}<div class=plots>{plots}</div>",
            f"<h2>Validity</h2><p>The measurement is {e(valid)}.</p>",
            f"<p class=facts>The load generator itself: {e(client_line(load))}.</p>{_pods(load)}",
        ]
    if whole.smoke:
        parts.append(f"<h2>Answer</h2><blockquote>{e(whole.smoke.answer) or 'none'}</blockquote>")
    return PAGE.substitute(
        title=e(f"{subject.delivery} {subject.release}".strip()),
        result=whole.result,
        tone=whole.result.lower(),
        facts="<br>".join(map(e, subject.facts())),
        parts="\n".join(parts),
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of numbers stand right."""
    columns = ["".join(column) for column in zip(*rows, strict=True)]
    right = [any(map(str.isdigit, column)) and not any(map(str.isalpha, column)) for column in columns]

    def line(tag: str, cells: Sequence[str]) -> str:
        cell = '<{0} class="{1}">{2}</{0}>'.format
        marked = zip(cells, right, strict=True)
        return "".join(cell(tag, MARKS.get(text, "n" * number), html.escape(text)) for text, number in marked)

    lines = [line("th", head), *(line("td", row) for row in rows)] if rows else []
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
