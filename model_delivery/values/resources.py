"""What places keep: resources, and what is said about them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from model_delivery.base import short
from model_delivery.values.kind import RECORD, Kind

Role = Literal["release", "standby", "route", "storage", "step", "record", "lease"]
RUNS: Final = ("release", "standby", "route")  # roles of what a delivery is, beside its books
Version = str
ABSENT: Final = Version("<absent>")
ANY: Final = Version("<any>")
ENGINES: Final = (
    "engine",
    "user-container",
    "kserve-container",
)  # what the container of the engine is called, by target


def digest(value: Any, length: int = 10) -> str:
    """The first ``length`` hex digits of the sha256 of ``value`` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def covers(now: Any, wanted: Any) -> bool:
    """Does every value of ``wanted`` stand in ``now``? A server may have added to
    mappings; lists are as long as they were.
    """
    if isinstance(wanted, Mapping):
        return isinstance(now, Mapping) and all(key in now and covers(now[key], value) for key, value in wanted.items())
    if isinstance(wanted, list | tuple):
        return isinstance(now, list | tuple) and len(now) == len(wanted) and all(map(covers, now, wanted))
    return bool(now == wanted)


def difference(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Lines ``spec.replicas: 1 → 2`` for every value that differs."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from difference(old.get(key), new.get(key), f"{where}.{key}" if where else str(key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for at, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from difference(one, other, f"{where}[{at}]")
    elif old != new:
        yield f"{where}: {short(json.dumps(old), 120)} → {short(json.dumps(new), 120)}"


@dataclass(frozen=True, order=True)
class Ref:
    """The name of a resource within one place and delivery."""

    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


RECORD_REF = Ref(RECORD, "record")


@dataclass(frozen=True)
class Resource:
    """What is wanted. ``spec`` is plain JSON; it states needs (``port: auto``), the place
    binds them.
    """

    ref: Ref
    role: Role
    delivery: str
    spec: Mapping[str, Any]
    release: str | None = None


@dataclass(frozen=True)
class Change:
    """What one ``put`` or ``delete`` did, or in a dry run would do; ``diff`` is lines for
    people. ``stays``, ``harmless``: lines of what others have put beside what is ours,
    which nobody may want, and which is known to do no harm.
    """

    ref: Ref
    action: Literal["created", "updated", "unchanged", "deleted", "absent"]
    diff: tuple[str, ...] = ()
    version: Version | None = None
    stays: tuple[str, ...] = ()
    harmless: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self._told(self.action)

    @property
    def proposal(self) -> str:
        """The line of a dry run."""
        return self._told(self.action if self.action in ("unchanged", "absent") else f"would be {self.action}")

    def _told(self, action: str) -> str:
        told = (*(self.diff if self.action == "updated" else ()), *self.stays)
        return f"{self.ref} {action}" + (f" ({'; '.join(told)})" if told else "")


@dataclass(frozen=True)
class Observed:
    """A resource as the place holds it now; ``status`` is what the place sees of it
    (address, alive, healthy, log tail…).
    """

    resource: Resource
    version: Version
    status: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class World:
    """Everything of one delivery at one moment (``observed_at``: seconds since the
    epoch).

    ``beside``: what a cluster shows next to our objects, by kind (Pod, Event,
    EndpointSlice, Node), as its API gives it.
    """

    delivery: str
    objects: Mapping[Ref, Observed]
    observed_at: float
    beside: Mapping[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)


class Mismatch(Exception):
    """``put(expect=…)`` met another version than the expected one."""

    def __init__(self, ref: Ref) -> None:
        super().__init__(str(ref))
        self.ref = ref
