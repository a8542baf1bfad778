"""``deliver loadtest URL``: the throughput test on any OpenAI-compatible server, with a verdict where bounds are given."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import httpx
from pydantic import ValidationError

from model_delivery.base.findings import BadInput, Finding, GateFailed, Permanent
from model_delivery.base.secrets import read_secret
from model_delivery.base.units import Duration, Rate
from model_delivery.cli import printing
from model_delivery.measure import capacity, report
from model_delivery.measure.metrics import LoadReport
from model_delivery.measure.validity import needed
from model_delivery.measure.verdict import Verdict, judge
from model_delivery.spec.loading import read_profile
from model_delivery.steps.load import LoadInput, profile, run
from model_delivery.values.gates import Slo

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


@click.command()
@click.argument("url")
@click.option("--model", help="The name to ask for; default: the first that the server lists.")
@click.option(
    "--profile", "named", default="chat", show_default=True, help="A profile's name, or a FILE.yaml of that form."
)
@click.option(
    "--users",
    type=click.IntRange(1, 4096),
    help="Closed loop: so many clients, each asks again once it is answered. Default: 16.",
)
@click.option(
    "--rate", type=Quantity(Rate), help="Open loop, such as 4/s: requests start when they start, answered or not."
)
@click.option("--duration", type=Quantity(Duration), default="60s", show_default=True, help="How long is measured.")
@click.option(
    "--warmup", type=Quantity(Duration), default="10s", show_default=True, help="What comes before, unmeasured."
)
@click.option("--repeats", type=click.IntRange(1, 20), default=1, show_default=True)
@click.option(
    "--processes", type=click.IntRange(1, 256), default=1, show_default=True, help="Processes of the load generator."
)
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed asks the same at the same moments.")
@click.option(
    "--slo",
    "slos",
    multiple=True,
    metavar="KEY=BOUND",
    help="Such as ttft_p95_max=500ms; exit code 4 when it is broken. Repeatable.",
)
@click.option(
    "--metrics-url", "pods", multiple=True, help="Each server behind URL, where URL is a balancer. Repeatable."
)
@click.option("--api-key-env", help="The environment variable that holds the API key.")
@click.option("--baseline", type=click.Path(path_type=Path), help="An earlier report's folder: compare with it.")
@click.option(
    "--max-regression", type=click.FloatRange(0, min_open=True), help="The share by which it may be worse, such as 0.1."
)
@click.option("--find-capacity", is_flag=True, help="Search the highest rate that holds the SLO.")
@click.option(
    "--steps", type=click.IntRange(1, 40), default=12, show_default=True, help="Rates that the search tries at most."
)
@click.option("--demand", type=Quantity(Rate), help="Say how many replicas hold this rate.")
@click.option(
    "--report", "folder", type=click.Path(path_type=Path), help="Where the report goes; default: ./loadtest-TIME."
)
@printing.as_json
def loadtest(
    url: str,
    named: str,
    folder: Path | None,
    find_capacity: bool,
    steps: int,
    demand: Rate | None,
    as_json: bool,
    **more: Any,
) -> None:
    """Load the server at URL (without /v1) and say what it does: exit code 4 when a bound of --slo is broken or the test is not valid."""
    given, before = _given(url.rstrip("/").removesuffix("/v1"), named, more), _baseline(more["baseline"])
    given = given if given.model else given.model_copy(update={"model": _first_model(given)})
    target = (folder or Path(f"loadtest-{time.strftime('%Y%m%d-%H%M%S')}")).absolute()
    given = given.model_copy(update={"folder": str(target / "locust")})
    found = None
    with printing.progress_lines():
        if find_capacity or demand:
            found = _capacity(given, steps)
            held = [point.report for point in found.points if point.holds]
            load = held[-1] if held else found.points[0].report
        else:
            load = run(given)
    verdict = judge(None, load, given.slo, baseline=before, max_regression=more["max_regression"])
    subject = report.Subject(given.url, given.model, 1, "load test", "", "", "", (), time.time())
    written = report.write(target, subject, None, load, verdict, found)
    _tell(load, verdict, found, demand, written.html, as_json=as_json)
    if not verdict.passed:
        raise GateFailed(*(Finding("todo", reason.text, "", "") for reason in verdict.reasons if not reason.passed))


def _given(url: str, named: str, more: dict[str, Any]) -> LoadInput:
    """Every wrong argument is told before anything is asked of the server."""
    if more["users"] and more["rate"]:
        raise BadInput(
            Finding("todo", "--users and --rate exclude each other", "users is a closed loop, rate an open one", FIX)
        )
    if more["max_regression"] and (more["repeats"] < 2 or not more["baseline"]):
        raise BadInput(
            Finding(
                "todo", "--max-regression needs --baseline and --repeats of 2 at least", "one run shows no noise", FIX
            )
        )
    key = {"env": more["api_key_env"]} if more["api_key_env"] else None
    content = read_profile(Path(named).absolute()) if named.endswith((".yaml", ".yml")) else named
    profile(content)
    try:
        slo = Slo.model_validate(
            {k: float(v) if _plain(v) else v for k, _, v in (text.partition("=") for text in more["slos"])}
        )
        facts = {name: more[name] for name in ("users", "rate", "warmup", "duration", "repeats", "processes", "seed")}
        given = LoadInput(
            url=url, model=more["model"] or "", profile=content, api_key=key, metrics=more["pods"], slo=slo, **facts
        )
    except ValidationError as error:
        told = [f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()]
        raise BadInput(
            *(Finding("todo", text, "", f"{FIX}; bounds are {', '.join(Slo.model_fields)}") for text in told)
        ) from None
    return given


def _plain(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def _first_model(given: LoadInput) -> str:
    headers = {"Authorization": f"Bearer {read_secret(given.api_key).reveal()}"} if given.api_key else {}
    try:
        answer = httpx.get(f"{given.url}/v1/models", headers=headers, timeout=30, trust_env=False)
        answer.raise_for_status()
        return str(answer.json()["data"][0]["id"])
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError) as error:
        fix = "is the service up, and URL its base address (without /v1)? a key is named with --api-key-env"
        raise Permanent(
            Finding("todo", f"{given.url}/v1/models does not list a model", str(error).split("\n")[0], fix)
        ) from None


def _capacity(given: LoadInput, steps: int) -> capacity.Capacity:
    """Start at what one client alone gets, and measure each rate long enough for the percentiles that are bounded."""
    alone = run(given.model_copy(update={"users": 1, "rate": None, "repeats": 1, "slo": Slo(error_rate_max=None)}))
    if not alone.good:
        why = ", ".join(f"{count} × {kind}" for kind, count in alone.errors.items())
        raise Permanent(
            Finding("todo", "one client alone gets no good answer", why, "try `deliver loadtest URL --users 1`")
        )

    def measure(rate: float) -> LoadReport:
        seconds = min(LONGEST, max(given.duration.seconds, 1.5 * needed(given.slo) / rate))
        return run(
            given.model_copy(
                update={"users": None, "rate": Rate(f"{rate:.6f}/s"), "duration": Duration(f"{seconds:.3f}s")}
            )
        )

    return capacity.find(measure, given.slo, start=1000 / alone.latencies["e2e"].mean, steps=steps)


def _baseline(folder: Path | None) -> LoadReport | None:
    if folder is None:
        return None
    found = report.read(folder / "report.html")
    if found is None:
        raise BadInput(
            Finding(
                "todo",
                f"{folder} holds no load report",
                "there is no report.json of this version",
                "name an earlier --report folder",
            )
        )
    return found


def _tell(
    load: LoadReport,
    verdict: Verdict,
    found: capacity.Capacity | None,
    demand: Rate | None,
    page: Path,
    *,
    as_json: bool,
) -> None:
    needs = found.replicas(demand.per_second) if found and demand else None
    said: dict[str, Any] = {
        "passed": verdict.passed,
        "validity": load.validity.model_dump(),
        "figures": load.figures(),
        "report": str(page),
    }
    said |= {"reasons": [asdict(reason) for reason in verdict.reasons]}
    if found is not None:
        tried = [{"rate": point.rate, "holds": point.holds, "why": point.why} for point in found.points]
        said |= {"capacity": {"rate": found.rate, "limit": found.limit, "tried": tried, "replicas": needs}}
    if as_json:
        printing.emit(said, machine=True)
        return
    head, rows = report.load_table(load)
    printing.table(head, rows)
    lines = [
        report.summary(load),
        f"validity: {load.validity.kind} {load.validity.why}".rstrip(),
        *(r.text for r in verdict.reasons),
    ]
    if found is not None:
        lines.append(
            f"capacity: {f'{found.rate:.3g} requests/s' if found.rate else 'no rate that was tried holds'} ({found.limit})"
        )
    if demand is not None:
        lines.append(
            f"{demand} needs {needs} replicas" if needs else f"{demand} cannot be held by any number of replicas"
        )
    click.echo("\n".join([*lines, f"report: {page}"]))


VERBS = (loadtest,)
