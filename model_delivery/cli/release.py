"""Verbs that change what is served: up, plan, adopt, rollback, down, history."""

from __future__ import annotations

import getpass
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import click
import yaml

from model_delivery.base import BadInput, Finding, moment
from model_delivery.cli.printing import (
    FILE,
    OUTPUT,
    Answer,
    answers,
    as_json,
    delivery,
    emit,
    progress_lines,
    show,
    table,
)
from model_delivery.places.opening import Location
from model_delivery.run.racing import words as raced
from model_delivery.run.record import Ended, dump_ended
from model_delivery.run.rules import OTHER_GATES
from model_delivery.run.starting import words
from model_delivery.spec import load_spec
from model_delivery.values import StageKind
from model_delivery.verbs import adopt as adopting
from model_delivery.verbs import history as histories
from model_delivery.verbs import lock as locking
from model_delivery.verbs import plan as plans
from model_delivery.verbs import status as statuses
from model_delivery.verbs.where import Where

STOPS = "what serves stops first, and clients are refused until the new release serves: recreate, or no room for both"
FIGURES = ("ttft_p95", "itl_p95", "output_tokens_per_second", "error_rate")


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
@click.option("--take-over", is_flag=True, help="In a cluster: take values that others hold, remove what they added.")
@click.option("--release", help="This earlier release of it again, through FILE's gates, not the one that FILE means.")
@answers
def up(file: Path, request: str | None, take_over: bool, release: str | None) -> Answer:
    """Deliver the spec in FILE, as `prefect deployment run` would; without a Prefect
    server when Prefect's settings name none.
    """
    spec = load_spec(file)
    spec = locking.again(spec, release) if release else spec
    from model_delivery.flows.deliver import deliver

    return _run(deliver, spec, request, take_over=take_over)


@click.command()
@FILE
@answers
def bisect(file: Path) -> Answer:
    """Which change of the spec in FILE, which a gate has refused, did it: model, engine
    or one of its arguments. Tries releases between it and what serves, dark.
    """
    spec = load_spec(file)
    from model_delivery.flows.bisect import bisect as search

    return _run(search, spec)


@click.command()
@FILE
@answers
def plan(file: Path) -> Answer:
    """What an `up` of FILE would change; nothing is touched."""
    spec = load_spec(file)
    planned = plans.plan(Location.of(spec.target.key()).open(), spec)
    there = "there already" if planned.fetched else "to be fetched"
    lines = [f"{planned.name}: {planned.result} ({planned.release})"]
    lines += planned.notes
    lines += [f"what serves now is down: {planned.down}"] if planned.down else []
    lines += [f"replaces the candidate {planned.replaces}"] if planned.replaces else []
    lines += [f"model {planned.commit[:12]}: {planned.files} files, {planned.bytes / 1e6:,.1f} MB, {there}"]
    own = len(planned.args) - len(spec.serving.args)
    added = planned.args[:own] if planned.args[own:] == tuple(spec.serving.args) else ()
    lines += [f"the model needs: {shlex.join(added)}"] if added else []
    lines += [f"tried before: {planned.tried}"] if planned.tried else []
    lines += [f"differs from {planned.leaves}: {line}" for line in planned.differs]
    gates = [name for name in ("smoke", "throughput") if getattr(spec.gates, name) is not None]
    judged = f" (gates: {', '.join(gates) or 'none'})"
    lines += [f"stages: {' → '.join(planned.stages)}{judged}"] if planned.stages else []
    lines += [OTHER_GATES] if planned.other_gates else []
    lines += [STOPS] if StageKind.STOP in planned.stages else []
    lines += [f"  {change}" for change in planned.changes] or ([] if planned.stages else ["no changes"])
    lines += [f"then {planned.leaves} {planned.standby}"] if planned.leaves and planned.standby else []
    return Answer(planned, lines + [f"  others: {line}" for line in planned.harmless])


@click.command()
@FILE
@click.option(
    "--from",
    "named",
    help="The Deployment, InferenceService or MLService that was made by hand; default: called as the delivery.",
)
@click.option("--yes", is_flag=True, help="Take it without asking.")
@as_json
def adopt(file: Path, named: str | None, yes: bool, as_json: bool) -> None:
    """Bring what was made by hand under the spec in FILE, as it runs: nothing restarts.
    What differs is shown first.
    """
    spec = load_spec(file)
    place = Location.of(spec.target.key()).open()
    found = adopting.look(place, spec, named)
    lines = [f"{found.what} comes under {spec.name} as release {found.release}, as it runs: nothing restarts"]
    lines += ["taking it:", *(f"  {line}" for line in found.changes or ("no changes",))]
    if found.differs:
        lines += ["what the spec would make of it, with the next release (now nothing of this changes):"]
        lines += [f"  {line}" for line in found.differs]
    show(lines, err=as_json)
    if not yes and not sys.stdin.isatty():
        fix = "read what differs, then run it with --yes"
        raise BadInput(Finding("cli.nobody-to-ask", "nothing was taken", "nobody can be asked here", fix))
    if not yes and not click.confirm("Take it?", err=as_json):
        click.echo("nothing was touched", err=as_json)
        return
    with progress_lines():
        adopting.take(place, spec, found)
        verified = adopting.verify(place, spec, found.release)
    if as_json:
        facts = {"name": spec.name, "result": "adopted", "release": found.release}
        emit(facts | {"verified": verified.model_dump(mode="json")})
        return
    files = f"{verified.files} files, {verified.bytes / 1e6:,.1f} MB"
    others = f"; beside the model's: {', '.join(verified.others)}" if verified.others else ""
    click.echo(f"{spec.name}: adopted (release {found.release}); its {files}, are the source's{others}")


@click.command()
@FILE
@click.option("--offline", is_flag=True, help="Ask neither hub nor registry: branch and tag stand as written.")
@answers
def render(file: Path, offline: bool) -> Answer:
    """The objects of FILE's service in a cluster, as `kubectl apply` takes them."""
    objects, warnings = plans.render(load_spec(file), offline=offline)
    show((f"warning: {warning}" for warning in warnings), err=True)
    text = yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return Answer(objects, [text.rstrip()])


@click.command()
@delivery
@click.option("--release", help="Default: what serves.")
@answers
def lock(where: Where, release: str | None) -> Answer:
    """A release as a spec with its lock (commit, files with their sums, engine or image):
    `deliver up` of that file makes it again, elsewhere too.
    """
    made = locking.lock(where.place, where.name, release)
    return Answer(made, [yaml.dump(made, Dumper=_Dumper, sort_keys=False, allow_unicode=True).rstrip()])


@click.command()
@delivery
@click.option("--to", help="The release to go back to; default: the previous one.")
@answers
def rollback(where: Where, to: str | None) -> Answer:
    """Give the traffic of NAME back to a release that served before."""
    goal = to or statuses.rollback_goal(where.place, where.name)
    from model_delivery.flows.rollback import rollback as flow

    return _run(flow, where.name, goal, where=where.location)


@click.command()
@delivery
@click.option("--by", default=getpass.getuser, help="Who says so; default: the user who types.")
@click.option("--reason", default="", help="Why; it is recorded.")
@click.option("--refuse", is_flag=True, help="Say no: the release is withdrawn.")
@answers
def promote(where: Where, by: str, reason: str, refuse: bool) -> Answer:
    """Let the release of NAME that waits for an approval have its traffic."""
    from model_delivery.flows.promote import promote as flow

    return _run(flow, where.name, by, reason, refuse, where=where.location)


@click.command()
@delivery
@answers
def down(where: Where) -> Answer:
    """Stop NAME. Its weights, reports and history stay."""
    with progress_lines():
        gone = statuses.down(where.place, where.name)
    lines = [f"{where.name} is down", *(f"  stopped {ref}" for ref in gone)]
    return Answer({"name": where.name, "stopped": gone}, lines)


@click.command()
@delivery
@click.option("--reports", type=OUTPUT, metavar="DIR", help="Write the reports and logs that are kept into DIR.")
@click.option("--starts", is_flag=True, help="Say of each how its engine's start went, too.")
@answers
def history(where: Where, reports: Path | None, *, starts: bool) -> Answer:
    """How every delivery of NAME ended: release, commit, arguments and figures; newest
    last.
    """
    ended = histories.history(where.place, where.name)
    files = histories.save_reports(where.place, where.name, reports) if reports else ()
    show((f"wrote {file}" for file in files), err=True)
    columns = ("when", "release", "try", "outcome", "why", "commit", "args", "figures (ms, tok/s)")
    went = [f"{e.release}-{e.attempt} started: {words(e.starts)}" for e in ended if starts and e.starts]
    went += [f"{e.release}-{e.attempt} raced: {raced(e.race)}" for e in ended if starts and e.race]
    return Answer([dump_ended(e) for e in ended], [table(columns, map(_row, ended)), *went])


def _row(ended: Ended) -> tuple[object, ...]:
    figures = ", ".join(f"{key} {value:,.4g}" for key, value in ended.figures.items() if key in FIGURES)
    why = ended.why(120)
    args = " ".join(ended.args)
    return moment(ended.at), ended.release, ended.attempt or "", ended.outcome, why, ended.commit[:12], args, figures


def _run(flow: Any, *args: Any, **options: Any) -> Answer:
    """Call the flow: as a Prefect run where Prefect's settings name a server, else as a
    plain function.
    """
    from prefect import tags
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    with progress_lines():
        if PREFECT_API_URL.value() is None:
            outcome = flow.fn(*args, **options)
        else:
            from model_delivery.flows.server import HEARTBEAT_SECONDS, TAG, server

            alive = temporary_settings(updates={PREFECT_FLOWS_HEARTBEAT_FREQUENCY: HEARTBEAT_SECONDS})
            with server(), tags(TAG), alive:
                outcome = flow(*args, **options)
    from model_delivery.tasks.artifacts import words

    lines = [f"{outcome['name']}: {words(outcome)}"]
    labels = {"endpoint": outcome["release"] and outcome["url"], "report": outcome["report"]}
    return Answer(outcome, lines + [f"{label}: {text}" for label, text in labels.items() if text])


VERBS = (up, plan, bisect, adopt, lock, render, promote, rollback, down, history)
