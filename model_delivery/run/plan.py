"""The one planner: which release a spec means, what a request for it comes to, by which
stages, and what they change.

``plan`` shows it, ``up`` carries it out, ``status`` shows what is left of it. Nothing is
touched here: where a rule would change the record first, the plan goes on with the
changed record in thought.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from model_delivery.base import BadInput, Finding, NoRoom
from model_delivery.run import rules
from model_delivery.run.book import Book
from model_delivery.run.frozen import Frozen
from model_delivery.run.record import Candidate, Outcome
from model_delivery.run.resolve import must_have_tokenizer
from model_delivery.run.restore import rebuilt
from model_delivery.run.rules import Answer
from model_delivery.spec import DeliverySpec
from model_delivery.values import Change, Desired, Lock, Release, ReleaseId, Stage, StageKind, Strategy, digest, stages

SLEEPS = "it goes to sleep, and gives its cards back"


@dataclass(frozen=True)
class Route:
    """The stages that a candidate has before it, by the strategy that was chosen;
    ``changes``: what the first one would change.
    """

    strategy: Strategy
    stages: tuple[Stage, ...]
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Planned:
    """What a request for a spec comes to; ``replaces``: the candidate that is withdrawn
    first.
    """

    answer: Answer
    release: ReleaseId
    frozen: Frozen
    replaces: ReleaseId | None
    route: Route | None
    changes: tuple[Change, ...]


def unchanged_digest(spec: DeliverySpec, lock: Lock) -> str:
    """By this a rerun knows a release again: model, serving without replicas, target,
    storage and lock.

    Replicas, gates and rollout are no part of what a release is, nor which loader has won
    where they raced.
    """
    parts = spec.model_dump(mode="json", include={"model", "serving", "target", "storage"})
    parts["serving"].pop("replicas")
    return digest([parts, lock.model_dump(mode="json", exclude={"loader"})], 20)


def identify(book: Book, spec: DeliverySpec, lock: Lock, now: float) -> tuple[ReleaseId, Frozen]:
    """The release that ``spec`` means: a known one with its frozen payload, else a new
    one, rendered now.

    An adoption that was killed before its record was written has taken nothing, and is
    not known.
    """
    unchanged, tried = unchanged_digest(spec, lock), {ended.release for ended in book.record.ended}
    same = {
        name: frozen
        for name, frozen in book.releases().items()
        if frozen.unchanged == unchanged and (frozen.payload.by_hand is None or name in tried)
    }
    if same:
        name = book.record.serving if book.record.serving in same else next(iter(same))
        return name, _led(book, name, same[name], lock.loader)
    served = spec.served(lock.snapshot)
    must_have_tokenizer(lock.snapshot, served.serving.args)
    payload = book.target.payload(served, lock)
    name = digest(payload.content())
    if lock.loader is None and (race := book.record.raced(name)) and race.won:
        lock = lock.model_copy(update={"loader": race.won})
    frozen = Frozen(
        payload=payload,
        lock=lock,
        unchanged=unchanged,
        model=spec.model,
        storage=spec.storage,
        args=served.serving.args,
        startup_timeout=spec.serving.startup_timeout,
        address=book.target.address(spec.name),
        created=now,
        mirrored=True,
        spec=spec.model_dump(mode="json", exclude={"lock"}),
    )
    return name, frozen


def _led(book: Book, name: ReleaseId, known: Frozen, loader: str | None) -> Frozen:
    """With the loader that a lock names, where it has none yet and is not started.
    BadInput where another has won here.
    """
    before, record = known.lock.loader, book.record
    if loader in (None, before):
        return known
    if before is not None:
        what, why = f"the lock names the loader {loader}", f"of release {name} {before} has won here"
        fix = f"write lock.loader: {before}, or leave it out"
        raise BadInput(Finding("release.other-loader", what, why, fix))
    if name in (record.serving, record.candidate and record.candidate.release):
        return known
    return known.with_loader(loader)


def route(book: Book, leaving: Collection[ReleaseId] = ()) -> Route:
    """The candidate's stages from its phase on; ``recreate`` where both releases do not
    fit and the spec allows it.

    ``leaving``: they make room before the first stage. NoRoom where it does not fit.
    """
    if leaving:
        book = replace(book, place=book.place.without(book.delivery, leaving))
    candidate = book.candidate
    old, new = book.desired(book.record.only_serving), book.release(candidate.release)
    strategy = candidate.strategy or _wished(candidate)
    sleep = {
        "sleep": candidate.rollout.sleeps,
        "wakes": new.id in book.record.desired.asleep,
        "nap": candidate.kind == "deliver",
    }
    planned = stages(strategy, old, new, candidate.rollout.steps, book.target.can, **sleep)
    phases = [stage.phase for stage in planned]
    if candidate.phase in phases:
        planned = planned[phases.index(candidate.phase) :]
        return Route(strategy, planned, book.changes(planned[0].desired))
    if planned[0].phase.kind == StageKind.STOP:
        return Route(strategy, planned, _replaced(book, old, new, planned[0]))
    try:
        return Route(strategy, planned, book.changes(planned[0].desired))
    except NoRoom:
        if candidate.rollout.when_full == "recreate" and old.releases:
            planned = stages("recreate", old, new, (), book.target.can, **sleep)
            return Route("recreate", planned, _replaced(book, old, new, planned[0]))
        raise


def planned(
    book: Book, spec: DeliverySpec, lock: Lock, *, now: float, request: str = "", scheduled: bool = False
) -> Planned:
    """What an ``up`` of ``spec`` would come to now. NoRoom where it could only be refused
    for want of room.
    """
    replicas, calm = spec.serving.replicas.min, book.record.candidate is None
    release, frozen = identify(book, spec, lock, now)
    book = book.supposing(rules.withdrawn(rebuilt(book.supposing(book.record, {release: frozen}), replicas)), {})
    if rules.lapsed(book.record, now):
        facts = book.frozen(book.candidate.release).facts
        book = book.supposing(rules.withdrawn(rules.lapsing(book.record, now, facts)), {})
    answer = rules.answer(book.record, release, frozen.unchanged, spec.gates, request, scheduled=scheduled)
    found = book.supposing(book.record, {release: frozen})
    book = book.supposing(rules.scaled(book.record, replicas), {release: frozen})
    if answer is Answer.GOES_ON:
        way = route(book)
        return Planned(answer, release, frozen, None, way, way.changes)
    if answer in (Answer.REPORTED, Answer.HELD, Answer.AWAITING):
        return Planned(answer, release, frozen, None, None, ())
    record, replaced = book.record, book.record.candidate
    if replaced is not None:
        facts = book.frozen(replaced.release).facts
        record = rules.withdrawn(rules.ending(record, Outcome.REPLACED, 1, "", now, facts))
    gone = replaced.release if replaced else None
    if answer is Answer.UNCHANGED:
        book = book.supposing(record, {})
        changes = book.changes(book.desired())
        acts = changes if found.record.replicas == replicas else found.changes(found.desired())
        broken = any(change.action != "unchanged" for change in acts) or book.lost_weights()
        return Planned(Answer.HEALED if calm and broken else answer, release, frozen, gone, None, changes)
    leaving = book.record.beside_serving
    address = book.target.address(spec.name)
    record = rules.proposed(record, release, request, spec.rollout, spec.gates, address)
    stored, way = storage_changes(book, frozen), route(book.supposing(record, {}), leaving)
    return Planned(answer, release, frozen, gone, way, (*stored, *way.changes))


def storage_changes(book: Book, frozen: Frozen) -> tuple[Change, ...]:
    """What the storage of a new release would change. Refused where it cannot be had."""
    wanted = book.target.storage(book.delivery, frozen.lock, frozen.storage)
    offered = [book.place.put(resource, dry_run=True) for resource in wanted]
    return tuple(change for change in offered if change.action != "unchanged")


def _wished(candidate: Candidate) -> Strategy:
    """A rollback takes no canary's time."""
    wished = candidate.rollout.strategy
    return "blue-green" if candidate.kind == "rollback" and wished == "canary" else wished


def _replaced(book: Book, old: Desired, new: Release, first: Stage) -> tuple[Change, ...]:
    """Where the old release has to make room first, the place cannot say yet what the new
    one will change.
    """
    refs = {release.id: book.target.main(book.delivery, release) for release in (*old.releases, new)}
    asleep = [Change(refs[release], "updated", (SLEEPS,)) for release in first.desired.asleep]
    gone = [Change(refs[each.id], "deleted") for each in old.releases if each.id not in first.desired.asleep]
    known = refs[new.id] in book.world().objects
    return (*asleep, *gone, Change(refs[new.id], "updated" if known else "created"))
