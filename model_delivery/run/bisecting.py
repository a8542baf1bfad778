"""What of a refused release did it? Between what serves and what was refused lie releases
that have some of its changes: a binary search among them names the one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from model_delivery.base import Finding, Refused
from model_delivery.models.native import MISTRAL, TRUST
from model_delivery.run.book import Book
from model_delivery.run.frozen import Frozen, differences
from model_delivery.run.plan import identify
from model_delivery.spec import DeliverySpec
from model_delivery.values import Lock
from model_delivery.values.serving import by_option, in_options

REST, MODEL, ENGINE = "the rest of the spec", "model", "engine"


@dataclass(frozen=True)
class Change:
    """One thing in which the refused release differs from what serves."""

    name: str
    words: str

    def __str__(self) -> str:
        return f"{self.name}: {self.words}"


@dataclass(frozen=True)
class Search:
    """The first ``good`` changes together pass; the first ``bad`` do not."""

    changes: tuple[Change, ...]
    good: int
    bad: int

    @property
    def found(self) -> Change | None:
        return self.changes[self.good] if self.bad - self.good == 1 else None

    @property
    def middle(self) -> int:
        return (self.good + self.bad) // 2

    def after(self, passed: bool) -> Search:
        return Search(self.changes, self.middle, self.bad) if passed else Search(self.changes, self.good, self.middle)


def begun(book: Book, spec: DeliverySpec, lock: Lock, now: float) -> Search:
    """Refused where nothing serves, where ``spec`` was not refused, or differs in
    nothing.
    """
    refused, new = identify(book, spec, lock, now)
    old = book.frozen(book.record.serving) if book.record.serving else None
    tried = next((ended for ended in reversed(book.record.ended) if ended.release == refused), None)
    if old is None or old.payload.by_hand is not None or tried is None or not tried.exit_code:
        nothing = "nothing serves" if old is None else "what serves was made by hand"
        why = nothing if old is None or old.payload.by_hand is not None else f"release {refused} was not refused"
        fix = "`deliver up` delivers it; `deliver history` says what was refused"
        raise Refused(Finding("release.nothing-refused", f"there is nothing to search in {spec.name}", why, fix))
    changes = tuple(_changes(old, new, spec))
    if not changes:
        why = f"release {refused} differs from {book.record.serving} in nothing that can be told apart"
        fix = "deliver it again: what refused it has passed, or is not of the spec"
        raise Refused(Finding("release.no-change", f"there is nothing to search in {spec.name}", why, fix))
    return Search(changes, 0, len(changes))


def between(book: Book, spec: DeliverySpec, lock: Lock, search: Search) -> tuple[DeliverySpec, Lock]:
    """``spec`` and ``lock`` with the changes up to the middle, else as what serves has
    it.
    """
    old, taken = book.frozen(str(book.record.serving)), {change.name for change in search.changes[: search.middle]}
    differ = {change.name for change in search.changes}
    serving = spec.serving.model_copy(update={"args": (*_mixed(old, spec, differ - taken),)})
    mixed = spec.model_copy(update={"serving": serving})
    if MODEL in differ - taken:
        mixed = mixed.model_copy(update={"model": old.model})
        lock = lock.model_copy(update={"snapshot": old.lock.snapshot})
    if ENGINE in differ - taken:
        lock = lock.model_copy(update={"engine": old.lock.engine, "image": old.lock.image})
    return mixed, lock


def _changes(old: Frozen, new: Frozen, spec: DeliverySpec) -> Iterator[Change]:
    before, after = in_options(_own(old)), in_options(spec.serving.args)
    told = [line for line in differences(old, new) if line.startswith("release.")]
    if told:
        yield Change(REST, "; ".join(told[:3]))
    if (was := old.lock.snapshot) != (now := new.lock.snapshot):
        yield Change(MODEL, f"{was.key} @ {was.commit[:12]} → {now.key} @ {now.commit[:12]}")
    if (old.lock.engine, old.lock.image) != (new.lock.engine, new.lock.image):
        yield Change(ENGINE, f"{_engine(old.lock)} → {_engine(new.lock)}")
    values = by_option(_own(old)), by_option(spec.serving.args)
    for name in after | before:
        if before.get(name) != after.get(name):
            yield Change(name, " → ".join(side.get(name, "not given") for side in values))


def _mixed(old: Frozen, spec: DeliverySpec, kept: Collection[str]) -> Iterator[str]:
    """The arguments: those options that are ``kept`` as they were, the others as the spec
    has them.
    """
    before, after = in_options(_own(old)), in_options(spec.serving.args)
    for name in after | before:
        yield from (before if name in kept else after).get(name, ())


def _own(old: Frozen) -> tuple[str, ...]:
    """Without those that its model needed, which are given again."""
    args = old.args[len(MISTRAL) :] if old.args[: len(MISTRAL)] == MISTRAL else old.args
    return args[1:] if args[:1] == (TRUST,) and "remote-code" in old.model.allow else args


def _engine(lock: Lock) -> str:
    return lock.image or (lock.engine.name if lock.engine else "none")
