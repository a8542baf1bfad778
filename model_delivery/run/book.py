"""What is known of a delivery, for whoever only reads: its place, its target, its record
and its releases.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Self

from model_delivery.base import Finding, Permanent, Refused, Trouble
from model_delivery.places import Place
from model_delivery.run import frozen as releases
from model_delivery.run import record as records
from model_delivery.run import rules
from model_delivery.run.converge import changes
from model_delivery.run.frozen import Frozen
from model_delivery.run.record import Candidate, Record, Wanted
from model_delivery.targets import Target, TargetKey
from model_delivery.values import (
    ABSENT,
    RECORD_REF,
    RELEASE,
    Change,
    Current,
    Desired,
    Failed,
    InProgress,
    Ref,
    Release,
    ReleaseId,
    Resource,
    Version,
    World,
)
from model_delivery.values.engine import DEFAULT_LOADER

NAMED = re.compile(r"[A-Za-z0-9-]{1,63}")


@dataclass
class Book:
    """``record`` is what was last read. ``supposed``: releases that a plan thinks of, and
    nobody has stored.
    """

    place: Place
    target: Target
    delivery: str
    record: Record
    version: Version = ABSENT
    supposed: Mapping[ReleaseId, Frozen] = field(default_factory=dict)

    @property
    def candidate(self) -> Candidate:
        """Permanent when another run has ended it."""
        if self.record.candidate is None:
            why = "another run ended it"
            raise Permanent(Finding("record.no-candidate", f"{self.delivery} has no candidate", why, "run again"))
        return self.record.candidate

    def supposing(self, record: Record, supposed: Mapping[ReleaseId, Frozen]) -> Self:
        """As it would be with another record, and releases that are not stored yet."""
        return replace(self, record=record, supposed={**self.supposed, **supposed})

    def world(self) -> World:
        return self.place.world(self.delivery)

    def releases(self) -> dict[ReleaseId, Frozen]:
        """Every release that the delivery still knows."""
        return releases.releases(self.world())

    def frozen(self, release: ReleaseId) -> Frozen:
        """Refused when it is not known (any more)."""
        if release in self.supposed:
            return self.supposed[release]
        named = NAMED.fullmatch(release)  # a person may have typed it: it becomes a path, or an address
        seen = self.place.get(self.delivery, Ref(RELEASE, release)) if named else None
        if seen and seen.resource.spec:
            return releases.load(release, seen.resource.spec)
        known = self.releases()
        if release in known:
            return known[release]
        names = ", ".join(sorted(known)) or "none"
        tried = next((e for e in reversed(self.record.ended) if e.release == release), None)
        ended = f"it is in the history ({tried.outcome}), and nothing is kept of it; " if tried else ""
        fix = "see `deliver history`; one that was deleted comes back with `deliver up` of its spec"
        raise Refused(Finding("release.unknown", f"release {release} is not known", f"{ended}known: {names}", fix))

    def serving_down(self) -> str:
        """Why what serves is down, though it shall run; empty where it is not."""
        serving, wanted = self.record.serving, self.record.desired
        if serving is None or serving in wanted.asleep or all(name != serving for name, _ in wanted.releases):
            return ""
        match self.target.readiness(self.release(serving), self.world()):
            case Current():
                return ""
            case Failed(finding):
                return finding.what
            case InProgress(why):
                return why

    def release(self, release: ReleaseId, replicas: int | None = None) -> Release:
        frozen = self.frozen(release)
        loader = frozen.lock.loader or DEFAULT_LOADER
        made = Release(release, frozen.payload, replicas or self.record.replicas, loader=loader)
        kept = self.target.keeper(self.delivery, made) is not None
        return replace(made, copy=releases.copied(frozen)) if kept else made

    def desired(self, wanted: Wanted | None = None) -> Desired:
        """The record's ``desired`` (or ``wanted``) with the payloads that its releases
        were frozen with.
        """
        wanted = self.record.desired if wanted is None else wanted
        running = tuple(self.release(name, replicas) for name, replicas in wanted.releases)
        return Desired(self.delivery, running, dict(wanted.traffic), self.record.address, frozenset(wanted.asleep))

    def leftovers(self, keep: int) -> tuple[Ref, ...]:
        """Where nothing is on its way: steps of ended attempts, releases that no rollback
        can want.
        """
        live = rules.live(self.record, keep)
        ours = ((ref, seen.resource.role) for ref, seen in sorted(self.world().objects.items()))
        return tuple(ref for ref, role in ours if role == "step" or (ref.kind == RELEASE and ref.name not in live))

    def lost_weights(self) -> tuple[ReleaseId, ...]:
        """The releases that shall run whose weights were fetched, and are gone."""
        shall = dict.fromkeys((self.record.serving, *(name for name, _ in self.record.desired.releases)))
        return tuple(name for name in shall if name is not None and self._lost(name))

    def _lost(self, release: ReleaseId) -> bool:
        with suppress(Trouble):  # whoever needs a release that is not known is told
            frozen = self.frozen(release)
            there = self.place.has_model(frozen.lock.snapshot, frozen.storage.path)
            return frozen.payload.by_hand is None and there is False
        return False

    def changes(self, want: Desired) -> tuple[Change, ...]:
        """What putting ``want`` in place would change. NoRoom where the place cannot hold
        it.
        """
        return changes(self.place, self.delivery, self.resources(want))

    def resources(self, want: Desired) -> tuple[Resource, ...]:
        """What ``want`` is made of; a release's object holds a copy of its books."""
        made = {resource.ref: resource for resource in self.target.compose(want)}
        for release in want.releases:
            keeper = self.target.keeper(self.delivery, release)
            if release.copy and keeper in made:
                made[keeper] = releases.with_copy(made[keeper], release)
        return tuple(made.values())

    def url(self, world: World) -> str | None:
        """Where clients find the service: as the target sees it now, else as meant; None
        where it has no address.
        """
        if self.record.address is None:
            return None
        with suppress(Refused):
            match self.target.routed(self.desired(), world):
                case Current(endpoint) if endpoint:
                    return endpoint
        return self.record.address.url


def read_or_new(place: Place, name: str, key: TargetKey) -> Book:
    """The book of a delivery to ``key``, which may be the first. Refused when one of
    another target is up.
    """
    seen = place.get(name, RECORD_REF)
    record = records.load(seen.resource.spec) if seen else Record(key)
    if record.active and not record.target.admits(key):
        what = f"the target of {name} cannot change while it is up"
        old, new = (side.model_dump(exclude_none=True) for side in (record.target, key))
        why = f"it is {old}, the spec says {new}"
        raise Refused(Finding("record.other-target", what, why, f"`deliver down {name}` first"))
    return Book(place, key.target(), name, replace(record, target=key), seen.version if seen else ABSENT)
