"""One run's hold on a delivery: its lease, its record, and the few moves that the protocol is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel

from model_delivery.base.clock import Clock, SystemClock
from model_delivery.base.findings import Finding, Permanent, Refused, Retryable
from model_delivery.base.secrets import from_cluster
from model_delivery.places import Place
from model_delivery.places.guarded import Guarded, Observer, unobserved
from model_delivery.run import record as records
from model_delivery.run.converge import Converged, RouteMark, converge
from model_delivery.run.frozen import Frozen
from model_delivery.run.lease import Lease
from model_delivery.run.record import Record, Wanted
from model_delivery.run.wait import until
from model_delivery.steps import Step, reading
from model_delivery.targets import StepRun, Target, TargetKey
from model_delivery.values.kind import RELEASE
from model_delivery.values.readiness import Current, Ended, Failed, InProgress, Readiness, Started, StepState
from model_delivery.values.release import Desired, Release, ReleaseId
from model_delivery.values.resources import ABSENT, RECORD_REF, Mismatch, Ref, Resource, Version, World

TRIES = 3
GONE_SECONDS = 300.0
STEP_START_SECONDS = 1800.0
O = TypeVar("O", bound=BaseModel)
_current: ContextVar[Session] = ContextVar("session")


@dataclass
class Session:
    """Open for one request on one delivery. ``record`` is what was last read or written; every write goes by compare and swap."""

    place: Place
    target: Target
    delivery: str
    request: str
    clock: Clock
    record: Record
    version: Version
    baseline: RouteMark | None = None

    def write(self, **changes: Any) -> None:
        """Write the record with ``changes``. A doubtful answer is read again: ours, it was applied; else Permanent."""
        new = Record.model_validate(self.record.model_copy(update=changes).model_dump())
        if new == self.record and self.version != ABSENT:
            return
        resource = Resource(RECORD_REF, "record", self.delivery, new.model_dump(mode="json"))
        try:
            version = self.place.put(resource, expect=self.version).version
        except (Mismatch, OSError) as doubt:
            seen = self.place.get(self.delivery, RECORD_REF)
            if isinstance(doubt, OSError) and (seen.version if seen else ABSENT) == self.version:
                raise Permanent(
                    Finding(
                        "todo",
                        f"the record of {self.delivery} cannot be written",
                        str(doubt),
                        "make room, then run again",
                    )
                ) from doubt
            if seen is None or seen.resource != resource:
                raise Permanent(
                    Finding(
                        "todo", f"the record of {self.delivery} was changed by another run", str(doubt), "run again"
                    )
                ) from doubt
            version = seen.version
        self.record, self.version = new, version or ""

    def frozen(self, release: ReleaseId) -> Frozen:
        seen = self.place.get(self.delivery, release_ref(release))
        if seen is None:
            known = (
                ", ".join(sorted(r.name for r in self.place.world(self.delivery).objects if r.kind.name == "Release"))
                or "none"
            )
            raise Refused(
                Finding(
                    "todo",
                    f"release {release} is not known",
                    f"known: {known}",
                    "see `deliver history`; one that was deleted comes back with its spec",
                )
            )
        return Frozen.model_validate(seen.resource.spec)

    def freeze(self, release: ReleaseId, frozen: Frozen) -> None:
        """Store what ``release`` was made with."""
        self.place.put(Resource(release_ref(release), "record", self.delivery, frozen.model_dump(mode="json"), release))

    def release(self, release: ReleaseId, replicas: int | None = None) -> Release:
        return Release(release, self.frozen(release).payload, replicas or self.record.replicas)

    def desired(self, wanted: Wanted | None = None) -> Desired:
        """The record's ``desired`` (or ``wanted``) with the payloads that its releases were frozen with."""
        wanted = self.record.desired if wanted is None else wanted
        releases = tuple(self.release(name, replicas) for name, replicas in wanted.releases)
        return Desired(self.delivery, releases, dict(wanted.traffic), self.record.address)

    def converge(self, *, dry_run: bool = False, wanted: Wanted | None = None) -> Converged:
        done = converge(
            self.place, self.delivery, self.target.compose(self.desired(wanted)), self.baseline, dry_run=dry_run
        )
        if not dry_run:
            self.baseline = done.route
            gone = {change.ref for change in done.changes if change.action == "deleted"}
            if gone:
                self._until("what was deleted", lambda world: _all_gone(gone, world), GONE_SECONDS)
        return done

    def wait_ready(self, release: ReleaseId, timeout: float) -> str:
        """The release's own endpoint, once it is ready."""
        wanted = self.release(release)
        return self._until(f"release {release}", lambda world: self.target.readiness(wanted, world), timeout)

    def wait_routed(self, timeout: float = 60) -> str:
        """The stable endpoint, once the traffic is where the record wants it."""
        wanted = self.desired()
        return self._until("the route", lambda world: self.target.routed(wanted, world), timeout)

    def url(self, world: World) -> str | None:
        """Where clients find the service: as the target sees it now, else as it was meant; None where it has no address."""
        if self.record.address is None:
            return None
        match self.target.routed(self.desired(), world):
            case Current(endpoint) if endpoint:
                return endpoint
        return self.record.address.url

    def _until(self, what: str, judge: Callable[[World], Readiness], timeout: float) -> str:
        return until(self.place, self.delivery, judge, what=what, timeout=timeout, clock=self.clock)

    def run_step(self, step: Step[Any, O], given: BaseModel, stage: str, release: ReleaseId | None = None) -> O:
        """Run ``step``, or adopt the one that a killed run of this attempt left; a try that ended in a retryable finding counts.

        For the candidate, or where there is none for ``release``.
        """
        candidate = self.record.candidate
        attempt = candidate.attempt if candidate else 0
        release = candidate.release if candidate else release
        frozen = self.frozen(release) if release else None
        patience = frozen.startup_timeout.seconds if frozen and frozen.startup_timeout else STEP_START_SECONDS
        world = self.place.world(self.delivery)
        for number in range(1, TRIES + 1):
            asked = StepRun(
                self.delivery,
                step.name,
                given.model_dump_json(),
                stage,
                attempt,
                number,
                frozen.payload if frozen else None,
                self.record.runner,
                release,
            )
            resources = self.target.step(asked)
            ref = resources[-1].ref
            seen = world.objects.get(ref)
            finished = seen is not None and bool(seen.status.get("finished"))
            for resource in resources:
                self.place.put(resource)
            try:
                return step.output.model_validate_json(self._followed(step.name, ref, patience))
            except Retryable:
                if finished and number < TRIES:
                    continue
                raise
        raise AssertionError("unreachable: the last try returns or raises")

    def _followed(self, name: str, ref: Ref, patience: float) -> str:
        """The step's result as JSON, once all of it has ended well; where there is none, what ended it from outside."""
        what = f"the {name} step"
        self._until(what, lambda world: _started(self.target.step_state(ref, world)), patience)
        try:
            text = reading.read(name, self.place.log(self.delivery, ref))
        except Retryable:
            match self.target.step_state(ref, self.place.world(self.delivery)):
                case Failed(finding, retryable):
                    raise (Retryable if retryable else Permanent)(finding) from None
            raise
        self._until(what, lambda world: _ended(self.target.step_state(ref, world)), patience)
        return text


def _all_gone(gone: set[Ref], world: World) -> Readiness:
    left = sorted(map(str, gone & world.objects.keys()))
    return InProgress(f"{', '.join(left)} ends") if left else Current("gone")


def _started(state: StepState) -> Readiness:
    return Current("started") if isinstance(state, Started) else _ended(state)


def _ended(state: StepState) -> Readiness:
    match state:
        case Started():
            return InProgress("its other part (the image's pull) goes on")
        case Ended():
            return Current("ended")
    return state


def frozen_releases(world: World) -> dict[ReleaseId, Frozen]:
    """Every release that the delivery still knows."""
    return {
        ref.name: Frozen.model_validate(seen.resource.spec)
        for ref, seen in world.objects.items()
        if ref.kind.name == "Release"
    }


def release_ref(release: ReleaseId) -> Ref:
    return Ref(RELEASE, release)


def current() -> Session:
    """The session of this context; LookupError outside of one."""
    return _current.get()


@contextmanager
def opened(
    place: Place,
    delivery: str,
    target: Target,
    key: TargetKey,
    *,
    request: str,
    when_busy: str = "wait",
    clock: Clock | None = None,
    observer: Observer = unobserved,
) -> Iterator[Session]:
    """Hold the lease of ``delivery`` for ``request`` and know its record. Refused when the record is of another target."""
    clock = clock or SystemClock()
    lease = Lease(place, delivery, request, clock)
    lease.acquire(when_busy)
    with lease.kept(), from_cluster(place.secret):
        guarded = Guarded(place, lease.fence, observer)
        seen = guarded.get(delivery, RECORD_REF)
        record = records.load(seen.resource.spec) if seen else Record(target=key)
        active = record.serving is not None or record.candidate is not None
        if active and not record.target.admits(key):
            why = f"it is {record.target.model_dump()}, the spec says {key.model_dump()}"
            raise Refused(
                Finding(
                    "todo",
                    f"the target of {delivery} cannot change while it is up",
                    why,
                    f"`deliver down {delivery}` first",
                )
            )
        record = record.model_copy(update={"target": key})
        session = Session(guarded, target, delivery, request, clock, record, seen.version if seen else ABSENT)
        token = _current.set(session)
        try:
            yield session
        finally:
            _current.reset(token)
