"""What an ``up`` would do, and the objects that it would make: nothing is touched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from model_delivery.base import Finding, Refused, SystemClock, from_cluster, sink
from model_delivery.places import Place
from model_delivery.places.opening import Location
from model_delivery.run import racing
from model_delivery.run.book import Book, read_or_new
from model_delivery.run.frozen import Frozen, differences
from model_delivery.run.plan import Route, planned
from model_delivery.run.preflight import preflight
from model_delivery.run.resolve import resolve_lock
from model_delivery.run.rules import other_gates
from model_delivery.spec import DeliverySpec
from model_delivery.values import Desired, Lock, Release, Rollout, Snapshot, digest
from model_delivery.verbs.quoting import unknown_secret, unquoted
from model_delivery.verbs.status import told


@dataclass(frozen=True)
class Plan:
    """What a delivery of the spec would come to; ``changes`` are lines for people, empty
    when nothing would change and nobody added anything; ``harmless``: what was added and
    is known to do no harm; ``down``: why what serves now is down, empty where it is not;
    ``args``: of the engine, with those that the model needs before the spec's;
    ``other_gates``: the release stays, and its gates were others than the spec's.
    ``leaves``: what serves now and is replaced. ``tried``: how this release has ended
    before, where it did not pass. ``differs``: from what serves, line by line.
    ``standby``: what becomes of what is replaced; empty where the first stage ends it.
    ``notes``: what could not be asked, and is as it was last known; what will race.
    """

    name: str
    release: str
    result: str
    replaces: str | None
    commit: str
    files: int
    bytes: int
    fetched: bool
    stages: tuple[str, ...]
    changes: tuple[str, ...]
    harmless: tuple[str, ...]
    down: str
    args: tuple[str, ...]
    other_gates: bool
    leaves: str | None
    tried: str
    differs: tuple[str, ...] = ()
    standby: str = ""
    notes: tuple[str, ...] = ()


def plan(place: Place, spec: DeliverySpec) -> Plan:
    """Resolve and compare."""
    preflight(spec, place, spec.target.key().target())
    book = read_or_new(place, spec.name, spec.target.key())
    book = unquoted(book) if unknown_secret(book) else book
    notes = list[str]()
    with from_cluster(place.secret), sink(lambda progress: notes.append(progress.note)):
        lock = resolve_lock(spec, book)
    result = planned(book, spec, lock, now=SystemClock().now())
    if (way := result.route) and not racing.is_outage(book, way.strategy):
        notes += racing.announced(result.frozen)
    changes, harmless = told(result.changes)
    new = Release(result.release, result.frozen.payload, spec.serving.replicas.min)
    return Plan(
        name=spec.name,
        release=result.release,
        result=result.answer,
        replaces=result.replaces,
        commit=lock.snapshot.commit,
        files=len(lock.snapshot.files),
        bytes=lock.snapshot.size,
        fetched=_fetched(book, spec, lock),
        stages=tuple(stage.words(new) for stage in result.route.stages) if result.route else (),
        changes=changes,
        harmless=harmless,
        down=book.serving_down(),
        args=result.frozen.args,
        leaves=book.record.serving if result.answer.delivers else None,
        differs=differs(book, result.frozen),
        standby=_standby(book, spec.rollout, result.route) if result.route and book.record.serving else "",
        tried=_tried(book, result.release) if result.answer.delivers else "",
        other_gates=result.release == book.record.serving and other_gates(book.record, spec.gates),
        notes=tuple(notes),
    )


def differs(book: Book, new: Frozen) -> tuple[str, ...]:
    """From what serves; nothing where nothing does, or it was made by hand: that may
    quote anything.
    """
    old = book.releases().get(book.record.serving or "")
    known = old is not None and old.payload.by_hand is None and old.unchanged != new.unchanged
    return differences(old, new) if old is not None and known else ()


def _standby(book: Book, rollout: Rollout, route: Route) -> str:
    wanted, leaves = route.stages[-1].desired, str(book.record.serving)
    if all(release.id != leaves for release in wanted.releases):
        return ""
    if not rollout.standby.seconds or rollout.standby_mode == "off":
        return "stops"
    sleeps = rollout.sleeps and book.release(leaves).payload.sleeps
    awake = " (awake: it was started without sleep mode)" if rollout.sleeps and not sleeps else ""
    return f"sleeps for {rollout.standby}" if sleeps else f"stays on standby for {rollout.standby}{awake}"


def _tried(book: Book, release: str) -> str:
    last = next((ended for ended in reversed(book.record.ended) if ended.release == release), None)
    if last is None or not last.exit_code:
        return ""
    return f"{last.outcome}: {last.why()}"


def _fetched(book: Book, spec: DeliverySpec, lock: Lock) -> bool:
    """Where the place cannot look into its store, a promoted release of the same commit
    tells.
    """
    there = book.place.has_model(lock.snapshot, spec.storage.path)
    if there is not None:
        return there
    return any(ended.commit == lock.snapshot.commit and ended.exit_code == 0 for ended in book.record.ended)


def render(spec: DeliverySpec, *, offline: bool = False) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Storage, first release and route as manifests that `kubectl apply` takes, and
    warnings.

    ``offline``: neither hub nor registry is asked; then branch and tag stand as they are
    written.
    """
    from model_delivery.places.cluster.objects import to_object

    key = spec.target.key()
    if key.namespace is None:
        why = f"target {key.kind} lives on a host, not in a cluster"
        raise Refused(Finding("target.not-in-a-cluster", "there is nothing to render", why, "use `deliver plan`"))
    warnings = tuple[str, ...]()
    if offline:
        model = spec.model
        snapshot = Snapshot.model_construct(source=model.source, key=model.key, commit=model.revision, files=())
        lock = Lock(snapshot=snapshot, image=spec.target.image)
        what = f"revision {snapshot.commit} and image {lock.image} were not resolved"
        warnings = (f"{what}: what is applied may change under them",)
    else:
        with from_cluster(Location.of(key).open().secret):
            lock = resolve_lock(spec)
    target = key.target()
    payload = target.payload(spec.served(lock.snapshot), lock)
    release = Release(digest(payload.content()), payload, spec.serving.replicas.min)
    want = Desired(spec.name, (release,), {release.id: 100}, target.address(spec.name))
    storage = target.storage(spec.name, lock, spec.storage)
    if spec.storage.claim and not spec.storage.size:
        storage = tuple(resource for resource in storage if resource.ref.name != spec.storage.claim)
        warnings = (*warnings, f"the claim {spec.storage.claim} must be there: without storage.size none is made")
    resources = (*storage, *target.compose(want))
    return [to_object(resource, key.namespace) for resource in resources], warnings
