"""The one seam for crashes: every effect is fenced by the lease, and seen before and after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from model_delivery.base.secrets import Secret, SecretRef
from model_delivery.places import Place
from model_delivery.values.resources import ANY, Change, Observed, Ref, Resource, Version, World

Observer = Callable[[Literal["before", "after"], str, Ref], None]


def unobserved(when: Literal["before", "after"], verb: str, ref: Ref) -> None:
    """Nobody looks."""


class Guarded:
    """A place whose put and delete first ask ``fence`` (which raises when the lease is no longer ours) and tell ``observer``."""

    def __init__(self, place: Place, fence: Callable[[], None], observer: Observer = unobserved) -> None:
        self._place, self._fence, self._observer = place, fence, observer

    @property
    def lease_seconds(self) -> float:
        return self._place.lease_seconds

    def put(self, resource: Resource, *, expect: Version = ANY, dry_run: bool = False) -> Change:
        if dry_run:
            return self._place.put(resource, expect=expect, dry_run=True)
        self._fence()
        self._observer("before", "put", resource.ref)
        change = self._place.put(resource, expect=expect)
        self._observer("after", "put", resource.ref)
        return change

    def delete(self, delivery: str, ref: Ref, *, grace: float | None = None) -> Change:
        self._fence()
        self._observer("before", "delete", ref)
        change = self._place.delete(delivery, ref, grace=grace)
        self._observer("after", "delete", ref)
        return change

    def world(self, delivery: str) -> World:
        return self._place.world(delivery)

    def get(self, delivery: str, ref: Ref) -> Observed | None:
        return self._place.get(delivery, ref)

    def deliveries(self) -> tuple[str, ...]:
        return self._place.deliveries()

    def log(self, delivery: str, ref: Ref, *, follow: bool = True) -> Iterator[bytes]:
        return self._place.log(delivery, ref, follow=follow)

    def hint(self, delivery: str, timeout: float) -> None:
        self._place.hint(delivery, timeout)

    def engine_log(self, delivery: str, release: str, *, follow: bool) -> Iterator[bytes]:
        return self._place.engine_log(delivery, release, follow=follow)

    def look_up(self, path: str) -> dict[str, Any] | None:
        return self._place.look_up(path)

    def rights(self) -> Sequence[Mapping[str, Any]] | None:
        return self._place.rights()

    def own_image(self) -> str | None:
        return self._place.own_image()

    def listening(self, port: int) -> bool:
        return self._place.listening(port)

    def secret(self, ref: SecretRef) -> Secret:
        return self._place.secret(ref)
