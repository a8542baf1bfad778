"""The one seam for crashes: every effect is fenced by the lease, and seen before and
after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

from model_delivery.places import Place
from model_delivery.values import ANY, Change, Ref, Resource, Version

Observer = Callable[[Literal["before", "after"], str, Ref], None]
_observer: ContextVar[Observer] = ContextVar("observer", default=lambda _when, _verb, _ref: None)


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Places that are guarded inside tell ``observer`` of every effect."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def guarded(place: Place, fence: Callable[[], None]) -> Place:
    """``place``, whose put and delete first ask ``fence`` (which raises when the lease is
    no longer ours) and tell the observer.
    """
    return cast("Place", _Guarded(place, fence, _observer.get()))


@dataclass(frozen=True)
class _Guarded:
    """Whatever is no effect passes as it is."""

    _place: Place
    _fence: Callable[[], None]
    _observer: Observer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._place, name)

    def put(self, resource: Resource, *, expect: Version = ANY, dry_run: bool = False) -> Change:
        effect = partial(self._place.put, resource, expect=expect, dry_run=dry_run)
        return effect() if dry_run else self._seen("put", resource.ref, effect)

    def delete(self, delivery: str, ref: Ref, *, grace: float | None = None) -> Change:
        return self._seen("delete", ref, partial(self._place.delete, delivery, ref, grace=grace))

    def _seen(self, verb: str, ref: Ref, effect: Callable[[], Change]) -> Change:
        self._fence()
        self._observer("before", verb, ref)
        change = effect()
        self._observer("after", verb, ref)
        return change
