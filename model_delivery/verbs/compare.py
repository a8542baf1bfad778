"""Two load tests beside each other: of releases, of reports, or one of each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model_delivery.base import BadInput, Finding, Permanent, did_you_mean, read_file, replace_file
from model_delivery.measure.compare import Comparison, comparable, compare, repeated
from model_delivery.measure.metrics import LoadReport
from model_delivery.measure.report import Report, parse
from model_delivery.measure.words import printable
from model_delivery.run import evidence
from model_delivery.run.frozen import Frozen, differences
from model_delivery.run.record import Candidate, Ended
from model_delivery.run.restore import read
from model_delivery.values.metrics import HEADLINES, Figure
from model_delivery.values.resources import difference
from model_delivery.values.serving import by_option
from model_delivery.verbs.where import Where, find

ANY = 1e-9
FORM = "name it NAME (what serves), NAME@RELEASE, or a report.json (or its folder)"


@dataclass(frozen=True)
class Side:
    """A load test, how it was asked for, and what is known of its release."""

    named: str
    report: Report
    load: LoadReport
    frozen: Frozen | None = None


@dataclass(frozen=True)
class Compared:
    """``figures``: those that are tested; ``seen``: those that both have and nobody
    tests. ``differs``: between the releases and their tests, line by line.
    """

    a: Side
    b: Side
    figures: tuple[Comparison, ...]
    seen: tuple[tuple[Figure, float, float], ...]
    differs: tuple[str, ...]


def compared(a: str, b: str, context: str | None, namespace: str | None, allowed: float | None) -> Compared:
    """BadInput where either is no load test, or the two must not be compared."""
    before, after = (_side(named, context, namespace) for named in (a, b))
    for side in (before, after):
        if not side.load.validity.judges("error_rate"):
            why, fix = f"{side.load.validity.kind}: {side.load.validity.why}", "compare with a test that was valid"
            raise BadInput(Finding("compare.not-valid", f"the load test of {side.named} cannot be judged", why, fix))
    if other := comparable(after.load, before.load):
        what, fix = f"{before.named} and {after.named} cannot be compared", "test both with one load and profile"
        raise BadInput(Finding("compare.other-load", what, other, fix))
    if allowed is not None and min(len(before.load.runs), len(after.load.runs)) < 2:
        what, why = "--max-regression cannot be judged", "one run shows no noise"
        raise BadInput(Finding("compare.one-run", what, why, "test both with repeats of 2 at least"))
    try:
        figures = compare(after.load, before.load, ANY if allowed is None else allowed)
    except (ArithmeticError, ValueError):
        what, why = f"{before.named} and {after.named} cannot be compared", "no load test has such figures"
        raise BadInput(Finding("compare.bad-figures", what, why, FORM)) from None
    tested = {c.figure for c in figures}
    pairs = ((f, before.load.value(f), after.load.value(f)) for f in HEADLINES if f not in tested)
    seen = tuple((f, x, y) for f, x, y in pairs if x is not None and y is not None)
    return Compared(before, after, figures, seen, (*_between(before, after),))


def picture(found: Compared, file: Path) -> None:
    """Write both into one PNG."""
    import vl_convert

    from model_delivery.measure import charts

    a, b = found.a, found.b
    title = f"A {a.named[-60:]}, B {b.named[-60:]}: {printable(a.load.load, 60)}, {printable(a.load.profile, 100)}"
    chart = charts.versus(a.load, b.load, found.figures, title)
    try:
        replace_file(file, vl_convert.vegalite_to_png(chart, scale=2))
    except OSError as error:
        why = error.strerror or str(error)
        raise BadInput(Finding("cli.unwritable-report", f"{file} cannot be written", why, "name another")) from None


def _side(named: str, context: str | None, namespace: str | None) -> Side:
    shown, (name, _, release) = printable(named), named.partition("@")
    spec = name.endswith((".yaml", ".yml"))
    path = Path(named)
    try:
        folder = path.is_dir() and (path / "report.json").exists()
        if folder or path.suffix == ".json" or ("/" in named and not spec):
            file = path / "report.json" if path.is_dir() else path
            report = _parsed(read_file(file, evidence.MOST, links=True), shown)
            return Side(shown, report, _tested(report, shown))
        return _kept(find(name, context, namespace), release)
    except (OSError, ValueError) as error:
        why = str((isinstance(error, OSError) and error.strerror) or error)
        raise BadInput(Finding("compare.no-report", f"{shown} has no report that can be read", why, FORM)) from None


def _kept(where: Where, release: str) -> Side:
    """The newest load test of a release, which may be on its way. Rollbacks have none."""
    book = read(where.place, where.name)
    wanted, record = release or book.record.serving, book.record
    if not wanted:
        what, why = f"nothing of {where.name} serves", "a bare name means what serves"
        fix = f"name {where.name}@RELEASE: see `deliver history {where.name}`"
        raise BadInput(Finding("compare.nothing-serves", what, why, fix))
    tried: list[Ended | Candidate] = [*record.ended]
    tried += [record.candidate] if record.candidate else []
    known = list(dict.fromkeys(each.release for each in tried))
    reports = [each for each in reversed(tried) if each.release == wanted and each.report]
    if wanted not in known:
        why = did_you_mean(wanted, known) or f"known: {', '.join(known) or 'none'}"
        what = f"{where.name} has no release {printable(wanted)}"
        raise BadInput(Finding("compare.no-release", what, why, f"see `deliver history {where.name}`"))
    named = f"{where.name}@{wanted}"
    if not reports:
        what, why = f"{named} has no report", "nothing was tested, or it is no longer kept"
        raise BadInput(Finding("compare.no-report", what, why, "name one that `deliver history` shows figures of"))
    parsed = (_parsed(evidence.report_json(book.place, where.name, each), named) for each in reports)
    report = next((one for one in parsed if one.throughput), None)
    if report is None:
        raise _untested(named)
    try:
        frozen = book.releases().get(wanted)
    except Permanent:  # made by another version: its report still says commit and arguments
        frozen = None
    return Side(named, report, _tested(report, named), frozen)


def _parsed(content: bytes, shown: str) -> Report:
    try:
        return parse(content)
    except ValueError as error:
        what, fix = f"{shown} is no report that this version reads", "was it written by another version? test it again"
        raise BadInput(Finding("compare.unreadable-report", what, str(error), fix)) from None


def _tested(report: Report, shown: str) -> LoadReport:
    load = report.throughput
    if load is None:
        raise _untested(shown)
    return repeated(load)


def _untested(shown: str) -> BadInput:
    what, fix = f"{shown} holds no load test", "name a release that met gates.throughput, or a report of `loadtest`"
    return BadInput(Finding("compare.no-load-test", what, "there are no figures to compare", fix))


def _between(a: Side, b: Side) -> list[str]:
    """Of two releases what their locks say, else what their reports do."""
    lines = list(difference(_test(a), _test(b)))
    if a.frozen and b.frozen and a.frozen.payload.by_hand is None and b.frozen.payload.by_hand is None:
        return [*differences(a.frozen, b.frozen), *lines]
    return [*difference(_made(a.report), _made(b.report)), *lines]


def _made(report: Report) -> dict[str, object]:
    subject = report.subject
    model = f"{subject.source} @ {subject.commit[:12]}" if subject.commit else ""
    return {"model": model, "engine": subject.engine, **by_option(subject.args)}


def _test(side: Side) -> dict[str, object]:
    load, stage = side.load, side.report.subject.stage
    return {"served as": load.model, "stage": stage, "repeats": len(load.runs), "servers tested": len(load.server)}
