"""Verbs that only look: status, list, logs, connect."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime

import click

from model_delivery.base.home import default_home
from model_delivery.cli import printing
from model_delivery.verbs import status as statuses
from model_delivery.verbs.where import Where, location


@click.command()
@printing.delivery
@printing.as_json
def status(where: Where, as_json: bool) -> None:
    """What serves under NAME, what is being tried, and whether the world is as it should
    be.
    """
    now = statuses.status(where.place, where.name)
    if as_json:
        printing.emit(asdict(now), machine=True)
        return
    facts = [f"{now.name}: {now.state}" + (f" at {now.url}" if now.url else "")]
    if now.candidate:
        ahead = f": {' → '.join(now.stages)}" if now.stages else ""
        facts.append(f"on its way: {now.candidate}, phase {now.phase}{ahead}")
    if now.standby_until:
        until = datetime.fromtimestamp(now.standby_until, tz=UTC)
        late = " (overdue: the next delivery ends it)" if until < datetime.now(tz=UTC) else ""
        facts.append(f"standby until {until.isoformat(timespec='seconds')}{late}")
    facts += ["held after a rollback: scheduled runs change nothing"] if now.held else []
    click.echo("\n".join(facts))
    rows = [
        (
            r.release,
            f"{r.share} %",
            r.state if r.verified else f"{r.state}, unverified",
            r.detail,
            r.pid,
            ",".join(map(str, r.cpus)),
            ",".join(map(str, r.gpus)),
        )
        for r in now.running
    ]
    if rows:
        printing.table(("release", "traffic", "state", "", "pid", "cpus", "gpus"), rows)
    for change in now.changes:
        click.echo(f"differs: {change} (run the delivery again)")


@click.command("list")
@printing.FIND[0]
@printing.FIND[1]
@printing.as_json
def list_(context: str | None, namespace: str | None, as_json: bool) -> None:
    """Every delivery of this host, or of a namespace."""
    place = location(context, namespace).open()
    found = [statuses.status(place, name) for name in place.deliveries()]
    if as_json:
        printing.emit([asdict(one) for one in found], machine=True)
    elif found:
        printing.table(
            ("name", "state", "endpoint", "release", "on its way"),
            [(s.name, s.state, s.url, s.serving, s.candidate) for s in found],
        )
    else:
        click.echo(
            f"no deliveries {f'in namespace {namespace}' if context or namespace else f'under {default_home()}'}"
        )


@click.command()
@printing.delivery
@click.option("--release", help="Whose log; default: the candidate's, else what serves.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the engine ends.")
@printing.as_json
def logs(where: Where, release: str | None, follow: bool, as_json: bool) -> None:
    """The engine's log of NAME."""
    for line in statuses.logs(where.place, where.name, release, follow=follow):
        text = line.decode(errors="replace")
        printing.emit({"line": text}, machine=as_json, text=text)


@click.command()
@printing.delivery
@printing.as_json
def connect(where: Where, as_json: bool) -> None:
    """How clients reach NAME: curl, the openai library, NextChat, Open WebUI."""
    connection = statuses.connection(where.place, where.name)
    printing.emit(asdict(connection), machine=as_json, text=connection.to_text())


VERBS = (status, list_, logs, connect)
