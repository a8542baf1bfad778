"""One run's hold on a delivery: its lease, its record, and the few moves that the
protocol is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TypeVar

from model_delivery.base import Clock, Finding, NoRoom, Permanent, Progress, SystemClock, Trouble, from_cluster, report
from model_delivery.base.home import disk_full
from model_delivery.places import Place
from model_delivery.places.guarded import guarded
from model_delivery.run import record as records
from model_delivery.run.book import Book, read_or_new
from model_delivery.run.converge import Converged, RouteMark, converge, mark, put, unwanted
from model_delivery.run.frozen import Frozen
from model_delivery.run.lease import Lease
from model_delivery.run.record import Record
from model_delivery.run.wait import Timeline, until
from model_delivery.targets import TargetKey
from model_delivery.values import (
    ABSENT,
    RECORD_REF,
    RELEASE,
    Absent,
    Failed,
    InProgress,
    Mismatch,
    Observed,
    Readiness,
    Ref,
    Release,
    ReleaseId,
    Resource,
    World,
)

GONE_SECONDS = 300.0
ROUTED_SECONDS = 60.0
R = TypeVar("R")
_current: ContextVar[Session] = ContextVar("session")


@dataclass
class Session(Book):
    """Open for one request on one delivery; the only writer of its record, by compare and
    swap. ``lap``: of a race, the loader that the candidate is started with just now, and
    what tells this start from others; a run that is killed in one leaves nothing of it.
    """

    request: str = ""
    clock: Clock = field(default_factory=SystemClock)
    baseline: RouteMark | None = None
    lap: tuple[str, str] | None = None

    def release(self, release: ReleaseId, replicas: int | None = None) -> Release:
        made, tried = super().release(release, replicas), self.record.candidate
        if self.lap is None or tried is None or tried.release != release:
            return made
        return replace(made, loader=self.lap[0], lap=self.lap[1])

    def write(self, record: Record) -> None:
        """Store ``record``. A doubtful answer is read again: ours, it was applied; else
        Permanent.
        """
        if record == self.record and self.version != ABSENT:
            return
        resource = Resource(RECORD_REF, "record", self.delivery, records.dump(record))
        try:
            version = self.place.put(resource, expect=self.version).version
        except (Mismatch, OSError) as doubt:
            seen = self.place.get(self.delivery, RECORD_REF)
            if isinstance(doubt, OSError) and (seen.version if seen else ABSENT) == self.version:
                what = f"the record of {self.delivery} cannot be written"
                unwritable = Finding(
                    "record.unwritable", what, str(doubt), "make room, or see who may write there; then run again"
                )
                raise Permanent(disk_full(doubt) or unwritable) from doubt
            if seen is None or seen.resource != resource:
                what = f"the record of {self.delivery} was changed by another run"
                raise Permanent(Finding("record.raced", what, str(doubt), "run again")) from doubt
            version = seen.version
        self.record, self.version = record, version or ""

    def freeze(self, release: ReleaseId, frozen: Frozen) -> None:
        """Store what ``release`` was made with."""
        self.place.put(Resource(Ref(RELEASE, release), "record", self.delivery, frozen.dump(), release))

    def converge(self) -> Converged:
        """Make the place hold what the record wants, and wait until what had to go has
        gone.

        Where what is wanted has no room, the releases that are no longer wanted go first.
        """
        resources = self.resources(self.desired())
        try:
            done = converge(self.place, self.delivery, resources, self.baseline, self.lead)
        except NoRoom:
            ends = [ref for ref in unwanted(self.world(), resources) if ref.kind.foreground]
            if not ends:
                raise
            self._wait_gone({self.place.delete(self.delivery, ref).ref for ref in ends})
            done = converge(self.place, self.delivery, resources, self.baseline, self.lead)
        self.baseline = done.route
        self._wait_gone({change.ref for change in done.changes if change.action == "deleted"})
        return done

    def remove(self, ref: Ref, *, grace: float | None = None) -> None:
        """And wait until it has gone."""
        self._wait_gone({self.place.delete(self.delivery, ref, grace=grace).ref})

    def lead(self, route: Resource, seen: Observed | None) -> Observed | None:
        """By the target's way, which a run that was killed on it goes on from where it
        was: it is told by what is seen alone.
        """
        for form, seconds in self.target.way(route, seen):
            if self.place.put(form, dry_run=True).action != "unchanged":
                put(self.place, form, seen)
                seen = self.place.get(self.delivery, form.ref)
                self.baseline = {**(self.baseline or {}), **mark(form, seen)}
            self._wait_taken(form)
            self.clock.sleep(seconds)
        return seen

    def _wait_taken(self, route: Resource) -> None:
        """Nobody new gets traffic where that is not known to be safe; whoever withdraws,
        or takes down, does not stand still with a gateway that does.
        """
        try:
            self.until("the route", lambda world: self.target.taken(route, world), ROUTED_SECONDS, "taken")
        except Trouble:
            tried = self.record.candidate
            if tried is not None and tried.ending is None:
                raise

    def _wait_gone(self, refs: set[Ref]) -> None:
        if refs:
            self.until("what was deleted", lambda world: _left(refs, world), GONE_SECONDS, "gone")

    def wait_ready(self, release: ReleaseId, timeout: float, timeline: Timeline | None = None) -> str:
        """The release's own endpoint, once it is ready. ``timeline``: where its start is
        noted.
        """
        wanted, what = self.release(release), f"release {release}"
        timeline = timeline or Timeline()

        def judge(world: World) -> Readiness:
            timeline.note(self.target.start(wanted, world), world.observed_at)
            return self._kept(self.target.readiness(wanted, world))

        return self.until(what, judge, timeout, timeline=timeline).endpoint

    def wait_routed(self) -> None:
        """Return once the traffic is where the record wants it. One of whom it goes to
        may have failed meanwhile: then it never gets there.
        """
        wanted = self.desired()

        def judge(world: World) -> Readiness:
            state = self._kept(self.target.routed(wanted, world))
            to = [release for release in wanted.releases if wanted.shares.get(release.id)]
            states = (self.target.readiness(release, world) for release in to)
            failed = (each for each in states if isinstance(each, Failed))
            return next(failed, state) if isinstance(state, InProgress) else state

        self.until("the route", judge, ROUTED_SECONDS)

    def _kept(self, state: Readiness) -> Readiness:
        """What somebody deleted while it was waited for is put again."""
        if isinstance(state, Absent):
            report(Progress("converge", f"{state.why}: put again"))
            self.converge()
        return state

    def until(
        self,
        what: str,
        judge: Callable[[World], R | InProgress | Failed],
        timeout: float,
        reached: str = "ready",
        since: float | None = None,
        timeline: Timeline | None = None,
    ) -> R:
        """Wait for a judgement on the delivery's world, ``timeout`` seconds at most."""
        return until(
            self.place,
            self.delivery,
            judge,
            what=what,
            timeout=timeout,
            clock=self.clock,
            reached=reached,
            since=since,
            timeline=timeline,
        )


def _left(gone: set[Ref], world: World) -> InProgress | None:
    left = sorted(gone & world.objects.keys())
    held = sorted({name for ref in left for name in world.objects[ref].status.get("finalizers") or ()})
    fix = "whoever set that finalizer removes it; see `kubectl get -o yaml`" if held else ""
    by = f", and waits for {', '.join(held)}" if held else ""
    return InProgress(f"{', '.join(map(str, left))} ends{by}", fix) if left else None


def current() -> Session:
    """The session of this context; LookupError outside of one."""
    return _current.get()


@contextmanager
def opened(
    place: Place,
    delivery: str,
    key: TargetKey,
    *,
    request: str,
    when_busy: str = "wait",
    clock: Clock | None = None,
) -> Iterator[Session]:
    """Hold the lease of ``delivery`` for ``request`` and know its record. Refused when
    one of another target is up.
    """
    clock = clock or SystemClock()
    lease = Lease(place, delivery, request, clock)
    lease.acquire(when_busy)
    with lease.kept(), from_cluster(place.secret):
        book = read_or_new(guarded(place, lease.fence), delivery, key)
        session = Session(book.place, book.target, delivery, book.record, book.version, request=request, clock=clock)
        token = _current.set(session)
        try:
            yield session
        finally:
            _current.reset(token)
