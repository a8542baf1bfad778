"""``deliver loadtest URL``: the throughput test on any OpenAI-compatible server, with a
verdict where bounds are given.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import ValidationError

from model_delivery.base import (
    BadInput,
    Duration,
    Finding,
    GateFailed,
    Permanent,
    Rate,
    did_you_mean,
    problems,
    read_file,
)
from model_delivery.cli.printing import OUTPUT, PATH, Answer, answers, progress_lines, table
from model_delivery.measure.metrics import LoadReport
from model_delivery.spec.loading import read_profile
from model_delivery.steps.load import LoadInput, profile, run
from model_delivery.values import Slo
from model_delivery.verbs import loadtest as loads

if TYPE_CHECKING:
    from model_delivery.measure.capacity import Capacity
    from model_delivery.measure.verdict import Verdict

FIX = "see `deliver loadtest --help`"
LONGEST = 300.0


class Quantity(click.ParamType[Any]):
    """A Duration or a Rate, told as click tells a wrong option."""

    def __init__(self, kind: type[Duration | Rate]) -> None:
        self.kind, self.name = kind, kind.__name__.lower()

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self.kind(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command(context_settings={"show_default": True})
@click.argument("url")
@click.option("--model", help="The name to ask for; default: the first that the server lists.")
@click.option("--profile", "named", default="chat", help="A profile's name, or a FILE.yaml of that form.")
@click.option(
    "--users",
    type=click.IntRange(1, 4096),
    help="Closed loop: so many clients, each asks again once it is answered. Default: 16.",
)
@click.option(
    "--rate", type=Quantity(Rate), help="Open loop, such as 4/s: requests start when they start, answered or not."
)
@click.option("--duration", type=Quantity(Duration), default="60s", help="How long is measured.")
@click.option("--warmup", type=Quantity(Duration), default="10s", help="What comes before, unmeasured.")
@click.option("--repeats", type=click.IntRange(1, 20), default=1)
@click.option("--processes", type=click.IntRange(1, 256), default=1, help="Processes of the load generator.")
@click.option("--seed", type=int, default=1, help="The same seed asks the same at the same moments.")
@click.option(
    "--slo",
    "slos",
    multiple=True,
    metavar="KEY=BOUND",
    help="Such as ttft_p95_max=500ms; exit code 4 when it is broken. Repeatable.",
)
@click.option(
    "--metrics-url", "metrics", multiple=True, help="Each server behind URL, where URL is a balancer. Repeatable."
)
@click.option("--api-key-env", help="The environment variable that holds the API key.")
@click.option("--baseline", type=PATH, help="An earlier report's folder: compare with it.")
@click.option(
    "--max-regression", type=click.FloatRange(0, min_open=True), help="The share by which it may be worse, such as 0.1."
)
@click.option("--find-capacity", is_flag=True, help="Search the highest rate that holds the SLO.")
@click.option("--steps", type=click.IntRange(1, 40), default=12, help="Rates that the search tries at most.")
@click.option("--demand", type=Quantity(Rate), help="Say how many replicas hold this rate.")
@click.option("--report", "folder", type=OUTPUT, help="Where the report goes; default: ./loadtest-TIME.")
@answers
def loadtest(
    url: str, named: str, folder: Path | None, find_capacity: bool, steps: int, demand: Rate | None, **more: Any
) -> Answer:
    """Load the server at URL (without /v1) and say what it does: exit code 4 when a bound
    of --slo is broken or the test is not valid.
    """
    given, before = _given(loads.base(url), named, more), _baseline(more["baseline"])
    target = (folder or Path(f"loadtest-{time.strftime('%Y%m%d-%H%M%S')}")).absolute()
    given = loads.ready(given.model_copy(update={"folder": str(target / "locust")}))
    search = None
    with progress_lines():
        if find_capacity or demand:
            search = _capacity(given, steps)
            held = [point.report for point in search.points if point.holds]
            load = held[-1] if held else search.points[0].report
        else:
            load = run(given)
    verdict, written = loads.judged(
        given, load, target, baseline=before, max_regression=more["max_regression"], search=search
    )
    return _answer(load, verdict, written.html, search, demand)


def _answer(load: LoadReport, verdict: Verdict, page: Path, search: Capacity | None, demand: Rate | None) -> Answer:
    from model_delivery.measure.report import load_table, summary

    value = {
        "passed": verdict.passed,
        "validity": load.validity.model_dump(),
        "figures": load.figures(),
        "report": str(page),
        "reasons": verdict.reasons,
    }
    lines = [summary(load), ": ".join(filter(None, ("validity", load.validity.kind, load.validity.why)))]
    lines += [reason.text for reason in verdict.reasons]
    if search is not None:
        tried = [{"rate": point.rate, "holds": point.holds, "why": point.why} for point in search.points]
        needs = search.replicas(demand.per_second) if demand else None
        value["capacity"] = {"rate": search.rate, "limit": search.limit, "tried": tried, "replicas": needs}
        rate = f"{search.rate:.3g} requests/s" if search.rate else "no rate that was tried holds"
        lines.append(f"capacity: {rate} ({search.limit})")
        replicas = f"needs {needs} replicas" if needs else "cannot be held by any number of replicas"
        lines += [f"{demand} {replicas}"] if demand else []
    lines.append(f"report: {page}")
    bad = None if verdict.passed else GateFailed(*verdict.findings())
    return Answer(value, [table(*load_table(load)), *lines], bad)


def _given(url: str, named: str, more: dict[str, Any]) -> LoadInput:
    """Every wrong argument is told before anything is asked of the server."""
    if more["users"] and more["rate"]:
        why = "users is a closed loop, rate an open one"
        raise BadInput(Finding("cli.users-and-rate", "--users and --rate exclude each other", why, FIX))
    if more["max_regression"] and (more["repeats"] < 2 or not more["baseline"]):
        what = "--max-regression needs --baseline and --repeats of 2 at least"
        raise BadInput(Finding("cli.no-baseline", what, "one run shows no noise", FIX))
    content = read_profile(Path(named).absolute()) if named.endswith((".yaml", ".yml")) else named
    profile(content, more["duration"], more["warmup"])
    facts = {key: more[key] for key in LoadInput.model_fields if key in more} | {"profile": content}
    if more["api_key_env"]:
        facts["api_key"] = {"env": more["api_key_env"]}
    try:
        slo = Slo.model_validate(
            {key: _bound(text) for key, _, text in (bound.partition("=") for bound in more["slos"])}
        )
        return LoadInput(url=url, slo=slo, **facts | {"model": more["model"] or ""})
    except ValidationError as error:
        unknown = [str(problem["loc"][-1]) for problem in error.errors() if problem["type"] == "extra_forbidden"]
        near = did_you_mean("".join(unknown[:1]), Slo.model_fields)
        fix = (f"{near} " if near else "") + FIX + (f"; bounds are {', '.join(Slo.model_fields)}" if unknown else "")
        raise BadInput(*(Finding("cli.bad-option", text, "", fix) for text in problems(error))) from None


def _bound(text: str) -> str | float:
    return float(text) if re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,18})?", text) else text


def _capacity(given: LoadInput, steps: int) -> Capacity:
    """Start at what one client alone gets, and measure each rate long enough for the
    percentiles that are bounded.
    """
    from model_delivery.measure import capacity
    from model_delivery.measure.validity import needed

    alone = run(given.model_copy(update={"users": 1, "rate": None, "repeats": 1, "slo": Slo(error_rate_max=None)}))
    if not alone.good:
        what, fix = "one client alone gets no good answer", "try `deliver loadtest URL --users 1`"
        raise Permanent(Finding("load.no-good-answer", what, alone.error_kinds(), fix))

    def measure(rate: float) -> LoadReport:
        seconds = min(LONGEST, max(given.duration.seconds, 1.5 * needed(given.slo) / rate))
        load = {"users": None, "rate": Rate(f"{rate:.6f}/s"), "duration": Duration(f"{seconds:.3f}s")}
        return run(given.model_copy(update=load))

    return capacity.find(measure, given.slo, start=1000 / alone.latencies["e2e"].mean, steps=steps)


def _baseline(folder: Path | None) -> LoadReport | None:
    if folder is None:
        return None
    from model_delivery.measure.report import parse

    why = "it was no load test that was reported"
    try:
        load = parse(read_file(folder / "report.json", links=True)).throughput
    except OSError as error:
        load, why = None, f"report.json: {error.strerror or error}"
    except ValueError as error:
        load, why = None, str(error)
    if load is None:
        fix = "name an earlier --report folder"
        raise BadInput(Finding("cli.no-report", f"{folder} holds no load report that this version reads", why, fix))
    return load


VERBS = (loadtest,)
