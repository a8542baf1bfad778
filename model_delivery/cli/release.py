"""Verbs that change what is served: up, plan, adopt, rollback, down, history."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import yaml

from model_delivery.base import BadInput, Finding
from model_delivery.cli import printing
from model_delivery.places.opening import Location
from model_delivery.run.record import dump_ended
from model_delivery.spec import load_spec
from model_delivery.verbs import adopt as adopting
from model_delivery.verbs import history as histories
from model_delivery.verbs import plan as plans
from model_delivery.verbs import status as statuses
from model_delivery.verbs.where import Where

FILE = click.argument("file", type=click.Path(path_type=Path))


class _Dumper(yaml.SafeDumper):
    """Quotes text such as ``81e1067962`` too, a release's id: a number to kubectl, not to
    PyYAML.
    """


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@click.command()
@FILE
@click.option("--request", help="A name of this request: a rerun with the same one reports how it ended.")
@click.option("--take-over", is_flag=True, help="In a cluster: take values that another field manager holds.")
@printing.as_json
def up(file: Path, request: str | None, take_over: bool, as_json: bool) -> None:
    """Deliver the spec in FILE, as `prefect deployment run` would; without a Prefect
    server when Prefect's settings name none.
    """
    spec = load_spec(file)
    from model_delivery.flows.deliver import deliver

    said = _run(deliver, lambda flow: flow(spec, request, take_over=take_over))
    _tell(said, as_json=as_json)


@click.command()
@FILE
@printing.as_json
def plan(file: Path, as_json: bool) -> None:
    """What an `up` of FILE would change; nothing is touched."""
    spec = load_spec(file)
    planned = plans.plan(Location.of(spec.target.key()).open(), spec)
    there = "there already" if planned.fetched else "to be fetched"
    lines = [f"{planned.name}: {planned.result} ({planned.release})"]
    lines += [f"replaces the candidate {planned.replaces}"] if planned.replaces else []
    lines += [f"model {planned.commit[:12]}: {planned.files} files, {planned.bytes / 1e6:,.1f} MB, {there}"]
    lines += [f"stages: {' → '.join(planned.stages)}"] if planned.stages else []
    lines += [f"  {change}" for change in planned.changes] or ["no changes"]
    printing.emit(asdict(planned), machine=as_json, text="\n".join(lines))


@click.command()
@FILE
@click.option(
    "--from",
    "named",
    help="The Deployment, InferenceService or MLService that was made by hand; default: called as the delivery.",
)
@click.option("--yes", is_flag=True, help="Take it without asking.")
@printing.as_json
def adopt(file: Path, named: str | None, yes: bool, as_json: bool) -> None:
    """Bring what was made by hand under the spec in FILE, as it runs: nothing restarts.
    What differs is shown first.
    """
    spec = load_spec(file)
    place = Location.of(spec.target.key()).open()
    found = adopting.look(place, spec, named)
    lines = [f"{found.what} comes under {spec.name} as release {found.release}, as it runs: nothing restarts"]
    lines += ["taking it:", *(f"  {line}" for line in found.changes or ("no changes",))]
    lines += (
        ["what the spec would make of it, with the next release (now nothing of this changes):"]
        if found.differs
        else []
    )
    lines += [f"  {line}" for line in found.differs]
    click.echo("\n".join(lines), err=as_json)
    if not yes and sys.stdin.isatty():
        yes = click.confirm("Take it?", err=as_json)
    elif not yes:
        raise BadInput(
            Finding(
                "cli.nobody-to-ask",
                "nothing was taken",
                "nobody can be asked here",
                "read what differs, then run it with --yes",
            )
        )
    if not yes:
        click.echo("nothing was touched", err=as_json)
        return
    with printing.progress_lines():
        adopting.take(place, spec, found)
        verified = adopting.verify(place, spec, found.release)
    said = {
        "name": spec.name,
        "result": "adopted",
        "release": found.release,
        "verified": verified.model_dump(mode="json"),
    }
    others = f"; beside the model's: {', '.join(verified.others)}" if verified.others else ""
    text = f"{spec.name}: adopted (release {found.release}); its {verified.files} files, {verified.bytes / 1e6:,.1f} MB, are the source's{others}"
    printing.emit(said, machine=as_json, text=text)


@click.command()
@FILE
@click.option("--offline", is_flag=True, help="Ask neither hub nor registry: branch and tag stand as written.")
@printing.as_json
def render(file: Path, offline: bool, as_json: bool) -> None:
    """The objects of FILE's service in a cluster, as `kubectl apply` takes them."""
    objects, warnings = plans.render(load_spec(file), offline=offline)
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    text = yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, allow_unicode=True).rstrip()
    printing.emit(objects, machine=as_json, text=text)


@click.command()
@printing.delivery
@click.option("--to", help="The release to go back to; default: the previous one.")
@printing.as_json
def rollback(where: Where, to: str | None, as_json: bool) -> None:
    """Give the traffic of NAME back to a release that served before."""
    goal = to or statuses.rollback_goal(where.place, where.name)
    from model_delivery.flows.rollback import rollback as flow

    said = _run(flow, lambda call: call(where.name, goal, where=where.location))
    _tell(said, as_json=as_json)


@click.command()
@printing.delivery
@printing.as_json
def down(where: Where, as_json: bool) -> None:
    """Stop NAME. Its weights, reports and history stay."""
    with printing.progress_lines():
        gone = statuses.down(where.place, where.name)
    printing.emit(
        {"name": where.name, "stopped": gone},
        machine=as_json,
        text=f"{where.name} is down" + "".join(f"\n  stopped {ref}" for ref in gone),
    )


@click.command()
@printing.delivery
@click.option(
    "--reports",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write the reports and logs that are kept into DIR.",
)
@printing.as_json
def history(where: Where, reports: Path | None, as_json: bool) -> None:
    """How every delivery of NAME ended: release, commit, arguments and figures; newest
    last.
    """
    ended = histories.history(where.place, where.name)
    for file in histories.save_reports(where.place, where.name, reports) if reports else ():
        click.echo(f"wrote {file}", err=True)
    if as_json:
        printing.emit([dump_ended(e) for e in ended], machine=True)
        return
    rows = []
    for e in ended:
        at = datetime.fromtimestamp(e.at, tz=UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        figures = ", ".join(
            f"{key} {value:,.4g}"
            for key, value in e.figures.items()
            if key in ("ttft_p95", "itl_p95", "output_tokens_per_second", "error_rate")
        )
        rows.append((at, e.release, e.attempt or "", e.outcome, e.commit[:12], " ".join(e.args), figures))
    printing.table(("when", "release", "try", "outcome", "commit", "args", "figures (ms, tok/s)"), rows)


def _run(flow: Any, call: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """Call the flow: as a Prefect run where Prefect's settings name a server, else as a
    plain function.
    """
    from prefect.settings import PREFECT_API_URL

    with printing.progress_lines():
        if PREFECT_API_URL.value() is None:
            return call(flow.fn)
        from model_delivery.flows.registration import server

        with server():
            return call(flow)


def _tell(said: dict[str, Any], *, as_json: bool) -> None:
    lines = [f"{said['name']}: {said['result']} (release {said['release']})"]
    lines += [f"{label}: {said[key]}" for key, label in (("url", "endpoint"), ("report", "report")) if said[key]]
    printing.emit(said, machine=as_json, text="\n".join(lines))


VERBS = (up, plan, adopt, render, rollback, down, history)
