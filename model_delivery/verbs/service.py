"""What a person asks of a delivery, on this host or in a cluster: reads, and ``down``."""

from __future__ import annotations

import difflib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_delivery.base.clock import SystemClock
from model_delivery.base.findings import BadInput, Finding, NoRoom, Refused
from model_delivery.base.secrets import from_cluster
from model_delivery.places import Place
from model_delivery.places.host.place import Host
from model_delivery.places.opening import open_place
from model_delivery.run import evidence, protocol
from model_delivery.run.frozen import Frozen
from model_delivery.run.preflight import preflight
from model_delivery.run.record import Ended, Record, load
from model_delivery.run.resolve import last_snapshot, resolve_lock
from model_delivery.run.session import Session, frozen_releases, opened
from model_delivery.spec import DeliverySpec, load_spec
from model_delivery.targets import Target, TargetKey
from model_delivery.targets.deployment import DeploymentKey
from model_delivery.targets.process import ENGINE, ProcessKey
from model_delivery.values.kind import RELEASE
from model_delivery.values.readiness import Current, Failed
from model_delivery.values.release import Desired, Lock, Release
from model_delivery.values.resources import ABSENT, RECORD_REF, Change, Ref, digest
from model_delivery.verbs.connect import Connection, connect

UP, STARTING, DOWN, BROKEN = "up", "starting", "down", "broken"


@dataclass(frozen=True)
class Running:
    """One release that runs: its share of the traffic in percent, and how it is; ``verified``: its weights are as their source lists them."""

    release: str
    share: int
    state: str
    detail: str
    pid: int | None
    cpus: tuple[int, ...]
    gpus: tuple[int, ...]
    verified: bool = True


@dataclass(frozen=True)
class Status:
    """What a delivery is now. ``standby_until``: seconds since the epoch; overdue when it lies in the past."""

    name: str
    state: str
    url: str | None
    serving: str | None
    previous: str | None
    candidate: str | None
    phase: str | None
    running: tuple[Running, ...]
    standby_until: float | None
    held: bool
    changes: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What a delivery of the spec would come to; ``changes`` are lines for people, empty when nothing would change."""

    name: str
    release: str
    result: str
    commit: str
    files: int
    bytes: int
    fetched: bool
    stages: tuple[str, ...]
    changes: tuple[str, ...]


@dataclass(frozen=True)
class Where:
    """A delivery: its name, and the key of the place that it lives in."""

    name: str
    key: TargetKey

    @property
    def place(self) -> Place:
        return open_place(self.key)


def find(named: str, context: str | None = None, namespace: str | None = None) -> Where:
    """``named`` is a spec's file, or a name on this host, or with ``context`` or ``namespace`` one in a cluster."""
    if named.endswith((".yaml", ".yml")):
        spec = load_spec(Path(named))
        return Where(spec.name, spec.target.key())
    if context is not None or namespace is not None:
        return Where(named, DeploymentKey(context=context, namespace=namespace or "default"))
    return Where(named, ProcessKey())


def record_of(host: Place, name: str) -> Record:
    """The record of ``name``; BadInput with the nearest name when there is none."""
    known = host.deliveries()
    seen = host.get(name, RECORD_REF) if name in known else None
    if seen is None:
        near = difflib.get_close_matches(name, known, 1)
        why = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known) or 'none'}"
        raise BadInput(Finding("todo", f"no delivery is called {name}", why, f"see `deliver list`; {_looked_up(host)}"))
    return load(seen.resource.spec)


def _looked_up(place: Place) -> str:
    if isinstance(place, Host):
        return (
            f"state is looked up under {place.home}; for a cluster name the spec's file, or --context and --namespace"
        )
    return "is it another --namespace or --context?"


def names(host: Place) -> tuple[str, ...]:
    return host.deliveries()


def history(host: Place, name: str) -> tuple[Ended, ...]:
    """How every attempt ended, newest last."""
    return record_of(host, name).ended


def save_reports(host: Place, name: str, folder: Path) -> tuple[Path, ...]:
    """Write what is kept of every attempt of ``name`` (reports, and in a cluster its engine's log) into a folder of its own below ``folder``."""
    saved = []
    for ended in history(host, name):
        for file, content in evidence.files(host, name, ended).items():
            target = folder / f"{name}-{ended.release}-{ended.attempt}" / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            saved.append(target)
    return tuple(saved)


def status(host: Place, name: str) -> Status:
    """What serves, what is being tried, what runs, and what a converge would change."""
    record = record_of(host, name)
    world = host.world(name)
    target = record.target.target()
    shares = dict(record.desired.traffic)
    running = []
    for release, replicas in record.desired.releases:
        known = world.objects.get(Ref(RELEASE, release))
        if known is None:
            raise Refused(
                Finding(
                    "todo",
                    f"release {release} is not known",
                    "somebody deleted its object",
                    "deliver the spec that made it again",
                )
            )
        frozen = Frozen.model_validate(known.resource.spec)
        wanted = Release(release, frozen.payload, replicas)
        seen = world.objects.get(target.main(name, wanted))
        said = seen.status if seen else {}
        match target.readiness(wanted, world):
            case Current(endpoint):
                state, detail = UP, endpoint
            case Failed(finding):
                state, detail = BROKEN, finding.what
            case other:
                state, detail = STARTING, other.why
        row = Running(
            release,
            shares.get(release, 0),
            state,
            detail,
            said.get("pid"),
            tuple(said.get("cpus", ())),
            tuple(said.get("gpus", ())),
            frozen.verified,
        )
        running.append(row)
    state = next((r.state for r in running if r.release == record.serving), DOWN)
    session = Session(host, target, name, "", SystemClock(), record, ABSENT)
    changes = tuple(map(_line, session.converge(dry_run=True).changes)) if record.candidate is None else ()
    return Status(
        name=name,
        state=state,
        url=session.url(world),
        serving=record.serving,
        previous=record.previous,
        candidate=record.candidate.release if record.candidate else None,
        phase=record.candidate.phase if record.candidate else None,
        running=tuple(running),
        standby_until=record.stop_after,
        held=record.held is not None,
        changes=changes,
    )


def logs(host: Place, name: str, release: str | None = None, *, follow: bool = False) -> Iterator[bytes]:
    """Lines of the engine's log: of ``release``, else of the candidate, else of what serves, else of the last that was tried."""
    record = record_of(host, name)
    last = record.ended[-1].release if record.ended else None
    chosen = release or (record.candidate.release if record.candidate else record.serving) or last
    if not isinstance(host, Host):
        yield from host.engine_log(name, str(chosen), follow=follow)
        return
    main = Ref(ENGINE, str(chosen))
    files = sorted((host.folder(name) / "logs").glob(f"{chosen}-*.log"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise BadInput(
            Finding(
                "todo",
                f"no log of {name} {chosen or ''}".rstrip(),
                "no engine of it was ever started here",
                f"see `deliver history {name}`",
            )
        )
    if follow and host.get(name, main) is not None:
        yield from host.log(name, main)
    else:
        yield from files[-1].read_bytes().splitlines()


def down(host: Place, name: str) -> tuple[str, ...]:
    """Stop everything of ``name`` but its weights and record; returns what was stopped, as lines."""
    key = record_of(host, name).target
    with opened(host, name, key.target(), key, request=uuid.uuid4().hex) as session:
        before = host.world(name).objects
        protocol.take_down(session)
        return tuple(
            str(ref)
            for ref, o in sorted(before.items())
            if o.resource.role in ("release", "route") and ref.kind.name != "Slot"
        )


def plan(host: Place, spec: DeliverySpec) -> Plan:
    """Resolve and compare, touching nothing."""
    target = spec.target.key().target()
    preflight(spec, host, target)
    with from_cluster(host.secret):
        lock = resolve_lock(spec, last_snapshot(spec.model, frozen_releases(host.world(spec.name)).values()))
    seen = host.get(spec.name, RECORD_REF)
    record = load(seen.resource.spec) if seen else Record(target=spec.target.key())
    session = Session(host, target, spec.name, "", SystemClock(), record, ABSENT)
    release, frozen = protocol.identify(session, spec, lock)
    snapshot = lock.snapshot
    facts: dict[str, Any] = {
        "name": spec.name,
        "release": release,
        "commit": snapshot.commit,
        "files": len(snapshot.files),
        "bytes": sum(file.size for file in snapshot.files),
        "fetched": _fetched(host, record, spec, lock.snapshot),
    }
    if record.serving == release and record.candidate is None:
        return Plan(
            **facts, result="unchanged", stages=(), changes=tuple(map(_line, session.converge(dry_run=True).changes))
        )
    result = "goes on" if record.candidate and record.candidate.release == release else "new release"
    stages, changes = _new_release(host, session, target, spec, release, frozen)
    return Plan(**facts, result=result, stages=stages, changes=changes)


def _new_release(
    host: Place, session: Session, target: Target, spec: DeliverySpec, release: str, frozen: Frozen
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    from model_delivery.values.rollout import stages

    record = session.record
    address = target.address(spec.name)
    old = Desired(
        spec.name, session.desired(record.only_serving()).releases, dict(record.only_serving().traffic), address
    )
    new = Release(release, frozen.payload, spec.serving.replicas.min)
    plan_ = stages(spec.rollout.strategy, old, new, tuple(spec.rollout.steps), target.can)
    try:
        changes = [host.put(r, dry_run=True) for r in target.compose(plan_[0].desired)]
    except NoRoom:
        if spec.rollout.when_full != "recreate" or not old.releases:
            raise
        plan_ = stages("recreate", old, new, (), target.can)
        changes = [Change(target.main(spec.name, r), "deleted") for r in old.releases]
        changes.append(Change(target.main(spec.name, new), "created"))
    names = tuple(
        f"{s.name} (with all of the traffic at once)" if s.gates and s.desired.shares == {release: 100} else s.name
        for s in plan_
    )
    return names, tuple(_line(c) for c in changes if c.action != "unchanged")


def _fetched(place: Place, record: Record, spec: DeliverySpec, snapshot: Any) -> bool:
    """In a cluster only a promoted release of the same commit tells."""
    from model_delivery.models.store import MANIFEST, model_folder

    if not isinstance(place, Host):
        return any(e.commit == snapshot.commit and e.exit_code == 0 for e in record.ended)
    return (model_folder(Path(spec.storage.path or place.home), snapshot) / MANIFEST).exists()


def _line(change: Change) -> str:
    return f"{change.ref} {change.action}" + (f" ({'; '.join(change.diff)})" if change.action == "updated" else "")


def connection(host: Place, name: str) -> Connection:
    """How clients reach ``name``. Refused when nothing serves."""
    record = record_of(host, name)
    if record.serving is None or record.address is None:
        raise Refused(
            Finding(
                "todo",
                f"{name} serves nothing",
                "it is down, or its first delivery has not passed",
                f"see `deliver status {name}`",
            )
        )
    seen = host.get(name, Ref(RELEASE, record.serving))
    if seen is None:
        raise Refused(
            Finding("todo", f"release {record.serving} is not known", "its object is gone", "deliver it again")
        )
    payload = Frozen.model_validate(seen.resource.spec).payload
    url = Session(host, record.target.target(), name, "", SystemClock(), record, ABSENT).url(host.world(name))
    return connect(str(url), payload.names, payload.api_key, record.target.namespace)


def rollback_goal(host: Place, name: str) -> str:
    """The release that a bare rollback of ``name`` goes back to: fixed before the first write. Refused when there is none."""
    record = record_of(host, name)
    if record.candidate is not None and record.candidate.kind == "rollback":
        return record.candidate.release
    return protocol.rollback_goal(Session(host, record.target.target(), name, "", SystemClock(), record, ABSENT))


def render(spec: DeliverySpec, *, offline: bool = False) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Storage, first release and route as manifests that `kubectl apply` takes, and warnings.

    ``offline``: neither hub nor registry is asked; then branch and tag stand as they are written.
    """
    from model_delivery.places.cluster.objects import to_object
    from model_delivery.values.snapshot import Snapshot

    key = spec.target.key()
    if key.namespace is None:
        raise Refused(
            Finding(
                "todo",
                "there is nothing to render",
                "target process lives on a host, not in a cluster",
                "use `deliver plan`",
            )
        )
    target, warnings = key.target(), tuple[str, ...]()
    if offline:
        repo, revision = getattr(spec.model, "repo", "local"), getattr(spec.model, "revision", "unknown")
        snapshot = Snapshot(source=spec.model.source, key=repo.replace("/", "--"), commit=revision, files=())
        lock = Lock(snapshot=snapshot, image=getattr(spec.target, "image", None))
        warnings = (
            f"revision {revision} and image {lock.image} were not resolved: what is applied may change under them",
        )
    else:
        place = open_place(key)
        with from_cluster(place.secret):
            lock = resolve_lock(spec)
    payload = target.payload(spec, lock)
    release = Release(digest(payload.content()), payload, spec.serving.replicas.min)
    want = Desired(spec.name, (release,), {release.id: 100}, target.address(spec.name))
    resources = (*target.storage(spec.name, lock, spec.storage), *target.compose(want))
    return [to_object(resource, key.namespace) for resource in resources], warnings
