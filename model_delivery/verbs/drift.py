"""What has changed under a delivery: upstream, or what stands. Nothing is touched."""

from __future__ import annotations

from dataclasses import dataclass

from model_delivery.base import Refused, Trouble, from_cluster
from model_delivery.places import Place
from model_delivery.run.book import Book
from model_delivery.run.plan import identify
from model_delivery.run.resolve import upstream
from model_delivery.run.restore import read
from model_delivery.spec import DeliverySpec
from model_delivery.values import Engine, Snapshot, digest
from model_delivery.verbs.quoting import unknown_secret, unquoted
from model_delivery.verbs.status import changed, hopeless

NAMES = {"snapshot": "model", "engine": "engine", "image": "image"}


@dataclass(frozen=True)
class Moved:
    """``part``: model, engine or image; ``before`` and ``now``: its commit, content or
    digest.
    """

    part: str
    before: str
    now: str

    def __str__(self) -> str:
        return f"{self.part}: {self.before} → {self.now}"


@dataclass(frozen=True)
class Drift:
    """``upstream``: what the delivery of the same spec would bring. ``live``: what a
    converge would put right. ``unknown``: what could not be found out, and why.
    """

    name: str
    release: str | None = None
    upstream: tuple[Moved, ...] = ()
    live: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def result(self) -> str:
        """As the lines of a plan: in words."""
        found = [kind for kind in ("upstream", "live") if getattr(self, kind)]
        return f"drift: {' and '.join(found)}" if found else "unknown" if self.unknown else "no drift"


def drift(place: Place, spec: DeliverySpec) -> Drift:
    """Of the delivery of ``spec``. Where it was never delivered, that is unknown."""
    if spec.name not in place.deliveries():
        return Drift(spec.name, unknown=(f"it was never delivered: `prefect deployment run deliver/{spec.name}`",))
    book = read(place, spec.name)
    if book.record.candidate is not None:
        why = f"release {book.record.candidate.release} is on its way"
        return Drift(spec.name, book.record.serving, unknown=(why,))
    with from_cluster(place.secret):
        moved, away = _upstream(book, spec)
        live, hidden = _live(book)
    return Drift(spec.name, book.record.serving, moved, live, (*away, *hidden))


def _upstream(book: Book, spec: DeliverySpec) -> tuple[tuple[Moved, ...], tuple[str, ...]]:
    """Against what serves, where that was made from the same spec."""
    if book.record.serving is None:
        return (), ("upstream: nothing serves, it is down",)
    lock = book.frozen(book.record.serving).lock
    if identify(book, spec, lock, 0.0)[0] != book.record.serving:
        return (), ("upstream: what serves was made from another spec than the registered one",)
    moved, away = list[Moved](), list[str]()
    for part, ask in upstream(spec).items():
        try:
            before, now = _shown(getattr(lock, part)), _shown(ask())
        except Trouble as trouble:
            away.append(f"upstream: {trouble.findings[0]}")
            continue
        moved += [Moved(NAMES[part], before, now)] if before != now else []
    return tuple(moved), tuple(away)


def _shown(part: Snapshot | Engine | str | None) -> str:
    if isinstance(part, Snapshot):
        return part.commit
    return f"{part.name} {digest(part.model_dump(mode='json'))}" if isinstance(part, Engine) else str(part)


def _live(book: Book) -> tuple[tuple[str, ...], tuple[str, ...]]:
    try:
        seen = unquoted(book) if unknown_secret(book) else book
        changes, _ = changed(seen, seen.world())
    except Refused as trouble:
        changes = hopeless(trouble)
    except Trouble as trouble:
        return (), (f"live: {trouble.findings[0]}",)
    return (*changes, *(f"the weights of {name} are gone" for name in book.lost_weights())), ()
