"""``deliver compare A B``: what a release changed, beside its noise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from model_delivery.base import GateFailed
from model_delivery.base.home import unwritable
from model_delivery.cli.printing import FIND, Answer, answers, table
from model_delivery.measure.compare import CONFIDENCE, Comparison
from model_delivery.values.metrics import shown
from model_delivery.verbs import compare as comparing


class Share(click.ParamType[float]):
    """``5%`` or ``0.05``."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seen = re.fullmatch(r"([0-9]{1,6}(\.[0-9]{1,9})?)\s*(%?)", str(value))
        share = float(seen[1]) / (100 if seen[3] else 1) if seen else 0.0
        if share <= 0:
            self.fail(f"{value!r} is no share above 0: write 5% or 0.05", param, ctx)
        return share


class Picture(click.Path):
    """A PNG that can be written."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        file = Path(str(super().convert(value, param, ctx)))
        if file.suffix.lower() != ".png" or file.is_dir():
            self.fail(f"{file} is no FILE.png", param, ctx)
        if why := unwritable(file.parent):
            self.fail(f"nothing can be written into {file.parent}: {why}", param, ctx)
        return file


@click.command()
@click.argument("a")
@click.argument("b")
@FIND[0]
@FIND[1]
@click.option("--max-regression", "allowed", type=Share(), help="Exit code 4 where B is worse by more, such as 5%.")
@click.option("--picture", type=Picture(), metavar="FILE.png", help="Write both into one picture.")
@answers
def compare(
    a: str, b: str, context: str | None, namespace: str | None, allowed: float | None, picture: Path | None
) -> Answer:
    """The load test of B beside that of A: each figure, its change and its noise, and
    what differs.

    A and B are NAME (what serves), NAME@RELEASE, or a report.json or its folder.
    """
    found = comparing.compared(a, b, context, namespace, allowed)
    if picture:
        comparing.picture(found, picture)
    sides = {key: _facts(side) for key, side in (("a", found.a), ("b", found.b))}
    value = {**sides, "figures": [*map(_json, found.figures)], "differs": found.differs}
    value["seen"] = [{"name": f.name, "a": x, "b": y} for f, x, y in found.seen]
    rows = [*map(_row, found.figures)]
    rows += [
        (f.title, shown(x, f.metric.unit), shown(y, f.metric.unit), "", "", "not tested") for f, x, y in found.seen
    ]
    lines = [f"A: {_words(found.a)}", f"B: {_words(found.b)}", f"{found.b.load.load} ({found.b.load.profile})"]
    noise = f"noise at {100 * CONFIDENCE:.0f} %"
    lines += [f"differs: {line}" for line in found.differs]
    if picture:
        value["picture"] = str(picture)
        lines.append(f"picture: {picture}")
    return Answer(value, [table(("figure", "A", "B", "change", noise, ""), rows), *lines], _gate(found, allowed))


def _gate(found: comparing.Compared, allowed: float | None) -> GateFailed | None:
    from model_delivery.measure.verdict import Verdict, regression

    if allowed is None:
        return None
    verdict = Verdict(tuple(regression(c, allowed) for c in found.figures))
    return None if verdict.passed else GateFailed(*verdict.findings())


def _facts(side: comparing.Side) -> dict[str, object]:
    subject = side.report.subject
    facts = {"named": side.named, "delivery": subject.delivery, "release": subject.release, "at": subject.at}
    return facts | {"runs": len(side.load.runs), "load": side.load.load, "profile": side.load.profile}


def _words(side: comparing.Side) -> str:
    runs = len(side.load.runs)
    return f"{side.named}, {runs} run{'s' if runs > 1 else ''}, {side.load.share_good()}"


def _row(c: Comparison) -> tuple[object, ...]:
    before, after = (shown(value, c.figure.metric.unit) for value in (c.before, c.after))
    noise = "" if c.noise is None else f"± {100 * c.noise:.2g} %"
    return c.figure.title, before, after, f"{100 * c.change:+.3g} %", noise, c.words


def _json(c: Comparison) -> dict[str, object]:
    return {
        "name": c.figure.name,
        "a": c.before,
        "b": c.after,
        "change": c.change,
        "worse": c.worse,
        "noise": c.noise,
        "words": c.words,
    }


VERBS = (compare,)
