"""Verbs that only look: status, list, logs, connect."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import click

from model_delivery.base import Finding, Permanent, Trouble, default_home, moment, scrub
from model_delivery.cli.printing import FIND, Answer, answers, as_json, delivery, emit, table
from model_delivery.run.answering import finding as silent
from model_delivery.run.answering import not_asked
from model_delivery.run.starting import words
from model_delivery.values import Card
from model_delivery.verbs import status as statuses
from model_delivery.verbs.where import Where, location

if TYPE_CHECKING:
    from rich.table import Table


@click.command()
@delivery
@click.option("--probe", is_flag=True, help="Ask each engine that serves for a token, too.")
@answers
def status(where: Where, *, probe: bool) -> Answer:
    """What serves under NAME, what is being tried, and whether the world is as it should
    be.
    """
    now = statuses.status(where.place, where.name, probe=probe)
    found = [silent(where.name, now.silent)] if now.silent else []
    found += [not_asked(where.name, now.unasked)] if now.unasked else []
    if probe and now.serving and now.state != statuses.UP and not found:
        fix = "`deliver up` of its spec puts it right, or says why not"
        found += [Finding("release.not-up", f"what serves {where.name} gives no token", f"it is {now.state}", fix)]
    return Answer(asdict(now), _lines(now), Permanent(*found) if found else None)


def _lines(now: statuses.Status) -> Iterator[str | Table]:
    yield f"{now.name}: {now.state}" + (f" at {now.url}" if now.url else "")
    if now.astray:
        yield f"the traffic is not where it shall be: {now.astray}"
    if now.candidate:
        ahead = f": {' → '.join(now.stages)}" if now.stages else ""
        yield f"on its way: {now.candidate}, phase {now.phase}{ahead}"
        if now.approval_until:
            how = f"`deliver promote {now.name}`, with --refuse to say no"
            yield f"it waits until {moment(now.approval_until)} for an approval: {how}"
        elif not now.at_work:
            yield "no run is at work on it: `deliver up` of its spec goes on, of another one ends it"
    if now.start:
        last = f"; the last one of the same: {words(now.before)}" if now.before else ""
        yield f"its start: {words(now.start)}{last}"
    if now.race:
        yield f"its loaders: {now.race}"
    if now.standby_until:
        late = " (overdue: the next delivery ends it)" if now.standby_until < time.time() else ""
        yield f"standby until {moment(now.standby_until)}{late}"
    if now.held:
        yield f"held ({now.why_held}): scheduled runs change nothing until a `deliver up` by hand, or another spec"
    if now.running:
        yield table(("release", "traffic", "state", "", "pid", "on CPUs", "on GPUs"), map(_row, now.running))
    yield from (f"differs: {change} (run the delivery again)" for change in now.changes)
    yield from (f"others: {line}" for line in now.harmless)


def _row(release: statuses.Running) -> tuple[object, ...]:
    state = release.state if release.verified else f"{release.state}, unverified"
    cpus = ",".join(map(str, release.cpus))
    return release.release, f"{release.share} %", state, release.detail, release.pid, cpus, _gpus(release)


def _gpus(release: statuses.Running) -> str:
    """Such as ``0: 30 %, 41.2 GiB``; the bare numbers where nothing else is known."""
    cards = release.cards or tuple(map(Card, release.gpus))
    told = []
    for card in cards:
        known = [f"{card.share:g} %"] if card.share is not None else []
        known += [f"{card.bytes / 2**30:.1f} GiB"] if card.bytes is not None else []
        told.append(": ".join(filter(None, (str(card.index), ", ".join(known)))))
    return ("; " if release.cards else ",").join(told)


@click.command("list")
@FIND[0]
@FIND[1]
@answers
def list_(context: str | None, namespace: str | None) -> Answer:
    """Every delivery of this host, or of a namespace."""
    place = location(context, namespace).open().overview()
    deliveries, unreadable = list[statuses.Status](), list[Finding]()
    for name in place.deliveries():
        try:
            deliveries.append(statuses.status(place, name))
        except Trouble as trouble:
            unreadable += (replace(finding, what=f"{name}: {finding.what}") for finding in trouble.findings)
    if unreadable:
        return Answer({"deliveries": deliveries}, _table(deliveries), Permanent(*unreadable))
    if not deliveries:
        where = f"in namespace {namespace}" if context or namespace else f"under {default_home()}"
        return Answer([], [f"no deliveries {where}"])
    return Answer(deliveries, _table(deliveries))


def _table(deliveries: Iterable[statuses.Status]) -> list[Table]:
    """With the GPUs of what serves, where anything has some."""
    rows = [(d.name, d.state, d.url, d.serving, d.candidate, _serving_on(d)) for d in deliveries]
    width = 6 if any(row[-1] for row in rows) else 5
    heads = ("name", "state", "endpoint", "release", "on its way", "on GPUs")
    return [table(heads[:width], (row[:width] for row in rows))]


def _serving_on(delivery: statuses.Status) -> str:
    return next((_gpus(row) for row in delivery.running if row.release == delivery.serving), "")


@click.command()
@delivery
@click.option("--release", help="Whose log; default: the candidate's, else what serves.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the engine ends.")
@as_json
def logs(where: Where, release: str | None, follow: bool, as_json: bool) -> None:
    """The engine's log of NAME."""
    for line in statuses.logs(where.place, where.name, release, follow=follow):
        text = line.decode(errors="replace")
        if as_json:
            emit({"line": text})
        else:
            click.echo(scrub(text))


@click.command()
@delivery
@answers
def connect(where: Where) -> Answer:
    """How clients reach NAME: curl, the openai library, NextChat, Open WebUI."""
    connection = statuses.connection(where.place, where.name)
    return Answer(connection, [connection.to_text()])


VERBS = (status, list_, logs, connect)
