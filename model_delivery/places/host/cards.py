"""Which GPUs an engine gets: whole ones, or a share of one beside other engines of ours,
by what the driver says is free and what those that run may still take.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from model_delivery.base import Permanent
from model_delivery.places.host.gpus import Gpu, process_name, read
from model_delivery.values import Card, Wanted

GIB = 2**30
BESIDE = 1.5 * GIB  # of an engine above its share: CUDA graphs and context (docs/results/gpu.md)
ENDING_SECONDS, LOOK_SECONDS = 10.0, 10.0


@dataclass(frozen=True)
class Tenant:
    """An engine of ours that runs; ``share``: None where it was bound to whole GPUs.
    ``leaving``: it goes before the new one comes. ``asleep``: it takes no more than what
    it holds.
    """

    name: str
    gpus: tuple[int, ...] = ()
    share: float | None = None
    pids: frozenset[int] = frozenset()
    leaving: bool = False
    asleep: bool = False

    def holds(self, gpu: Gpu) -> int:
        return sum(size or 0 for pid, size in gpu.held if pid in self.pids)

    def claims(self, gpu: Gpu) -> float:
        """What it may come to hold there."""
        if gpu.index not in self.gpus:
            return 0
        if self.asleep:
            return self.holds(gpu)
        return max(self.holds(gpu), gpu.total if self.share is None else self.share * gpu.total + BESIDE)


@dataclass(frozen=True)
class Choice:
    """What an engine is bound to, or ``missing``: why it has no room; ``seen``: each GPU,
    in words.
    """

    gpus: tuple[int, ...] = ()
    share: float | None = None
    missing: str = ""
    seen: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Room:
    """One GPU for one that wants ``share`` of it."""

    gpu: Gpu
    share: float
    tenants: Sequence[Tenant]

    @property
    def staying(self) -> list[Tenant]:
        return [one for one in self.tenants if self.gpu.index in one.gpus and not (one.leaving or one.asleep)]

    @property
    def unseen(self) -> float:
        """What no process is said to hold, beyond what ours may: in a container the
        driver's processes have other numbers.
        """
        used = self.gpu.total - self.gpu.free - sum(size or 0 for _, size in self.gpu.held)
        return max(0.0, used - sum(max(0.0, one.claims(self.gpu) - one.holds(self.gpu)) for one in self.tenants))

    @property
    def others(self) -> float:
        """What those hold who are not ours, or not bound to this GPU."""
        ours = {pid for one in self.tenants if one.leaving or one in self.staying for pid in one.pids}
        return self.unseen + sum(size or 0 for pid, size in self.gpu.held if pid not in ours)

    @property
    def left(self) -> float:
        """What is left once it has come. Alone it needs what vLLM itself asks for: its
        share, free.
        """
        beside = BESIDE if self.staying else 0
        claimed = sum(one.claims(self.gpu) for one in self.staying)
        return self.gpu.total * (1 - self.share) - self.others - claimed - beside

    @property
    def fits(self) -> bool:
        return not self.gpu.fault and (self.left >= 0 if self.gpu.total else not self.staying)

    @property
    def order(self) -> tuple[bool, float, int]:
        """Those first that nobody is on; then where the least is left."""
        return bool(self.staying) or self.others > BESIDE, self.left, self.gpu.index

    @property
    def ending(self) -> bool:
        """Is some of it held by a process that has ended? The driver frees it a moment
        later.
        """
        return self.unseen > BESIDE or not all(process_name(pid) for pid, _ in self.gpu.held)

    def words(self) -> str:
        gpu, named = self.gpu, f"GPU {self.gpu.index} ({self.gpu.name})"
        if gpu.fault:
            return f"{named}: {gpu.fault}"
        told = [f"{gpu.free / GIB:.1f} of {gpu.total / GIB:.1f} GiB free", *map(self._tenant, self.tenants)]
        ours = {pid for one in self.tenants for pid in one.pids}
        others = ((pid, "?" if size is None else f"{size / GIB:.1f}") for pid, size in gpu.held if pid not in ours)
        told += (f"process {pid} ({process_name(pid) or 'not seen from here'}) holds {size}" for pid, size in others)
        return f"{named}: {'; '.join(filter(None, told))}"

    def _tenant(self, one: Tenant) -> str:
        held, bound = one.holds(self.gpu), self.gpu.index in one.gpus
        if not (held or bound):
            return ""
        share = "" if not bound or one.asleep else "whole, " if one.share is None else f"{one.share:.0%}, "
        more = " (asleep)" if one.asleep else " (it goes first)" if one.leaving else ""
        return f"{one.name} has {share}{held / GIB:.1f} in use{more}"


def choose(wanted: Wanted, tenants: Sequence[Tenant]) -> Choice:
    """GPUs that have room, always the same of the same. What an engine held that has just
    ended is waited for.
    """
    if not wanted.count:
        return Choice()
    until = time.monotonic() + ENDING_SECONDS
    while True:
        rooms = [_Room(gpu, wanted.share, tenants) for gpu in read()]
        fitting = sorted((room for room in rooms if room.fits), key=lambda room: room.order)
        if len(fitting) >= wanted.count:
            return Choice(tuple(sorted(room.gpu.index for room in fitting[: wanted.count])), wanted.share)
        if time.monotonic() > until or not any(room.ending for room in rooms):
            break
        time.sleep(0.5)
    words = f"{wanted.count} GPU{'s' * (wanted.count > 1)} wanted, with {wanted.share:.0%} of the memory of each"
    beside = f" and {BESIDE / GIB:.1f} GiB beside other engines" if any(room.staying for room in rooms) else ""
    missing = f"{words}{beside}, {len(fitting)} of {len(rooms)} with so much room"
    return Choice(missing=missing, seen=tuple(room.words() for room in rooms))


def have_room(bound: Mapping[str, Any], tenants: Sequence[Tenant]) -> bool:
    """Can a sleeper have again what it had of its GPUs? Woken onto one that is taken, it
    would answer, and fail ever after.
    """
    rooms = [_Room(gpu, bound.get("share") or 1.0, tenants) for gpu in read()] if bound["gpus"] else []
    return {room.gpu.index for room in rooms if room.fits} >= set(bound["gpus"])


def held(tenants: Sequence[Tenant]) -> Iterator[tuple[Card, ...]]:
    """Of each tenant, what it has; without bytes where the driver does not answer."""
    gpus = dict[int, Gpu]()
    with suppress(Permanent):
        gpus = {gpu.index: gpu for gpu in read(LOOK_SECONDS)}
    for one in tenants:
        yield tuple(_card(index, one, gpus.get(index)) for index in one.gpus)


def _card(index: int, one: Tenant, gpu: Gpu | None) -> Card:
    share = None if one.share is None else round(one.share * 100, 1)
    known = gpu is not None and any(pid in one.pids and size is not None for pid, size in gpu.held)
    return Card(index, share, one.holds(gpu) if gpu and known else None)
