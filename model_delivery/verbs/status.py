"""What a person asks of a delivery that is there: what serves, its log, how to reach it,
and its end.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain

from model_delivery.base import Finding, Permanent, Refused, Trouble
from model_delivery.places import Place
from model_delivery.run import protocol, racing, rules, starting
from model_delivery.run.answering import Probe
from model_delivery.run.answering import probe as ask_engines
from model_delivery.run.book import Book
from model_delivery.run.lease import held
from model_delivery.run.plan import route
from model_delivery.run.record import Record, Starts
from model_delivery.run.restore import must_know, read
from model_delivery.run.session import opened
from model_delivery.values import RUNS, Card, Change, Current, Failed, InProgress, Payload, Phase, ReleaseId, World
from model_delivery.verbs.connect import Connection, connect
from model_delivery.verbs.quoting import unknown_secret, unquoted

Told = tuple[tuple[str, ...], tuple[str, ...]]
UP, STARTING, DOWN, BROKEN, ASLEEP, STOPPED = "up", "starting", "down", "broken", "asleep", "stopped"


@dataclass(frozen=True)
class Running:
    """One release that runs: its share of the traffic in percent, and how it is.

    ``verified``: its weights are as their source lists them. ``cards``: its GPUs, and
    what it holds there.
    """

    release: str
    share: int
    state: str
    detail: str
    pid: int | None
    cpus: tuple[int, ...]
    gpus: tuple[int, ...]
    verified: bool = True
    cards: tuple[Card, ...] = ()


@dataclass(frozen=True)
class Status:
    """What a delivery is now. ``standby_until``: seconds since the epoch; overdue when it
    lies in the past.

    ``held``: scheduled runs do not try the same again; ``why_held``: how that ended.
    ``stages``: what a candidate has before it. ``harmless``: what others have put beside
    what is ours. ``astray``: why clients do not come to where they should; empty: they
    do. ``at_work``: a run has the candidate in hand. ``approval_until``: as long a person
    may say whether it gets traffic.
    ``silent``: why what serves gives no token, where that was asked and it does not;
    ``unasked``: why it could not be asked.
    ``start``: of the candidate, else of what serves: the phases that it has come by, in
    seconds; None: nobody says when. ``before``: of the last one of the same. ``race``:
    of its loaders, in words.
    """

    name: str
    state: str
    url: str | None
    serving: str | None
    previous: str | None
    candidate: str | None
    phase: str | None
    stages: tuple[str, ...]
    running: tuple[Running, ...]
    standby_until: float | None
    held: bool
    changes: tuple[str, ...]
    harmless: tuple[str, ...]
    astray: str = ""
    at_work: bool = False
    why_held: str = ""
    approval_until: float | None = None
    silent: str = ""
    unasked: str = ""
    start: Mapping[Phase, float | None] = field(default_factory=dict)
    before: Starts = field(default_factory=dict)
    race: str = ""


def status(place: Place, name: str, *, probe: bool = False) -> Status:
    """What serves, what is being tried, what runs, and what a converge would change.
    ``probe``: what serves is asked for a token.
    """
    book = read(place, name)
    if unknown := unknown_secret(book):
        book = unquoted(book)
    probed = ask_engines(book, book.record.serving) if probe and book.record.serving else Probe()
    record, candidate, world = book.record, book.record.candidate, book.world()
    changes, harmless = ((), ()) if candidate else _changes(book, world)
    running = tuple(_running(book, world, name) for name, _ in record.desired.releases)
    cards = place.cards(name)
    running = tuple(replace(row, cards=cards.get(row.release, ())) for row in running)
    if unknown:
        running = tuple(_unquoted(row, unknown) for row in running)
    state = next((row.state for row in running if row.release == record.serving), DOWN)
    start, before = _starts(book, world)
    return Status(
        name=name,
        state=state,
        url=book.url(world),
        serving=record.serving,
        previous=record.previous,
        candidate=candidate.release if candidate else None,
        phase=str(candidate.phase) if candidate else None,
        stages=_stages(book),
        running=running,
        standby_until=record.stop_after,
        held=record.held is not None,
        changes=changes,
        harmless=harmless,
        astray=_astray(book, world),
        at_work=candidate is not None and held(place, name),
        why_held=_why_held(record),
        approval_until=asked.until if (asked := rules.unanswered(record)) else None,
        silent=probed.why,
        unasked=probed.unasked,
        start=start,
        before=before,
        race=racing.words(record.raced((candidate.release if candidate else record.serving) or "")),
    )


def _starts(book: Book, world: World) -> tuple[Mapping[Phase, float | None], Starts]:
    """Of the candidate, else of what serves: its start as it is seen now, else as it is
    kept. And, of a candidate, the last one of the same.
    """
    candidate = book.record.candidate
    about = candidate.release if candidate else book.record.serving
    if about is None:
        return {}, {}
    own = (ended.starts for ended in reversed(book.record.ended) if ended.release == about and ended.starts)
    start = candidate.starts if candidate else next(own, {})
    before: Starts = {}
    with suppress(Trouble):  # of a release that is not known: its own line says it
        before = next(reversed(starting.kept(book, about, world)), {}) if candidate else {}
        now = book.target.start(book.release(about), world)
        if now is not None and Phase.HEALTHY not in now.reached:
            return {phase: at and round(max(0.0, at - now.began), 1) for phase, at in now.reached.items()}, before
    return start, before


def _why_held(record: Record) -> str:
    """How that ended which scheduled runs do not try again; empty: nothing is held."""
    if record.held is None or not record.ended:
        return ""
    last = record.ended[-1]
    return ": ".join(filter(None, (f"{last.outcome} {last.release}", last.why())))


def _unquoted(row: Running, why: str) -> Running:
    return row if row.state == UP else replace(row, detail=f"{row.detail} (its log is not quoted: {why})")


def _astray(book: Book, world: World) -> str:
    try:
        state = book.target.routed(book.desired(), world)
    except Trouble:
        return ""  # of a release that is not known: its own line says it
    match state:
        case InProgress(why):
            return why
        case Failed(finding):
            return f"{finding.what}: {finding.why}"
    return ""


def _changes(book: Book, world: World) -> Told:
    """What a converge would change, or why it could not: a port that somebody else has by
    now, no room.
    """
    try:
        return changed(book, world)
    except Trouble as trouble:
        return hopeless(trouble), ()


def hopeless(trouble: Trouble) -> tuple[str, ...]:
    return tuple(f"cannot be put right: {finding.what}: {finding.why}" for finding in trouble.findings)


def changed(book: Book, world: World) -> Told:
    """What differs from what the record wants, and what others have put there without
    harm. Refused, and NoRoom, where it cannot be put right.
    """
    must_know(book.delivery, world)
    return told(book.changes(book.desired()))


def _running(book: Book, world: World, name: ReleaseId) -> Running:
    share = dict(book.record.desired.traffic).get(name, 0)
    try:
        release = book.release(name)
    except Trouble as trouble:
        return Running(name, share, BROKEN, trouble.findings[0].what, None, (), ())
    seen = world.objects.get(book.target.main(book.delivery, release))
    match book.target.readiness(release, world):
        case Current(endpoint):
            state, detail = UP, endpoint
        case Failed(finding):
            state, detail = BROKEN, finding.what
        case waiting:
            state, detail = STARTING, waiting.why
    bound = seen.status if seen else {}
    if name in book.record.desired.asleep and bound.get("asleep"):
        state, detail = ASLEEP, "it holds no card; a rollback wakes it"
    elif name in book.record.desired.asleep and state != UP:
        state, detail = STOPPED, "it does not sleep any more; a rollback starts it anew"
    return Running(
        release.id,
        share,
        state,
        detail,
        bound.get("pid"),
        tuple(bound.get("cpus", ())),
        tuple(bound.get("gpus", ())),
        book.frozen(release.id).verified,
    )


def _stages(book: Book) -> tuple[str, ...]:
    """The planner's words; none where the place cannot say (a candidate that does not fit
    is refused by its run).
    """
    candidate = book.record.candidate
    if candidate is None or candidate.ending is not None:
        return ()
    try:
        way = route(book)
    except Refused:
        return ()
    new = book.release(candidate.release)
    return tuple(stage.words(new) for stage in way.stages)


def told(changes: Collection[Change]) -> Told:
    """Lines for people: what differs, and what others have put there without harm."""
    differs = (change.proposal for change in changes if change.action != "unchanged" or change.stays)
    return tuple(differs), tuple(f"{change.ref}: {text}" for change in changes for text in change.harmless)


def logs(place: Place, name: str, release: str | None = None, *, follow: bool = False) -> Iterator[bytes]:
    """Lines of the engine's log: of ``release``, else the candidate's, else what serves,
    else the last that was tried. Permanent where it has none. Refused where a secret is
    not known here: nobody could tell whether the log says it.
    """
    book = read(place, name)
    record = book.record
    last = record.ended[-1].release if record.ended else ""
    chosen = release or (record.candidate.release if record.candidate else record.serving) or last
    if why := unknown_secret(book, chosen):
        what, fix = f"the log of {name} is not shown", "set here what the engine was started with, then ask again"
        raise Refused(Finding("release.log-unshown", what, f"it may say a secret that is not known here: {why}", fix))
    lines = place.engine_log(name, chosen, follow=follow)
    first = next(lines, None)
    if first is None:
        what, why = f"there is no log of {name} {chosen}".rstrip(), "no engine of it runs, or none has said a word yet"
        raise Permanent(Finding("release.no-log", what, why, f"see `deliver status {name}`"))
    return chain((first,), lines)


def down(place: Place, name: str) -> tuple[str, ...]:
    """Stop everything of ``name`` but its weights and record; returns what was stopped,
    as lines.
    """
    key = read(place, name).record.target
    with opened(place, name, key, request=uuid.uuid4().hex) as session:
        before = session.world().objects
        protocol.take_down(session)
        stopped = [ref for ref, seen in sorted(before.items()) if seen.resource.role in RUNS]
        return tuple(str(ref) for ref in stopped if not ref.kind.detail)


def connection(place: Place, name: str) -> Connection:
    """How clients reach ``name``. Refused when nothing serves."""
    book, payload = served(place, name)
    key = book.record.target
    return connect(str(book.url(book.world())), payload.names, payload.api_key, key.namespace, key.context)


def served(place: Place, name: str) -> tuple[Book, Payload]:
    """The book of ``name``, and what it serves. Refused when nothing does."""
    book = read(place, name)
    if book.record.serving is None or book.record.address is None:
        why = "it is down, or its first delivery has not passed"
        raise Refused(Finding("release.none-serves", f"{name} serves nothing", why, f"see `deliver status {name}`"))
    return book, book.frozen(book.record.serving).payload


def rollback_goal(place: Place, name: str) -> str:
    """The release that a bare rollback of ``name`` goes to: fixed before the first write.
    Refused when there is none.
    """
    record = read(place, name).record
    if record.candidate is not None and record.candidate.kind == "rollback":
        return record.candidate.release
    return protocol.rollback_goal(record, name)
