"""A delivery's own books, where somebody deleted one of them: they are made again from
what stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from model_delivery.base import NAME, BadInput, Finding, Refused, did_you_mean
from model_delivery.places import Place
from model_delivery.run import record as records
from model_delivery.run import rules
from model_delivery.run.book import Book
from model_delivery.run.frozen import releases
from model_delivery.run.record import Record, alone
from model_delivery.targets import standing
from model_delivery.values import ABSENT, RECORD_REF, RUNS, Current, ReleaseId, World


def read(place: Place, name: str) -> Book:
    """The book of a delivery that exists, or of whose objects some stand. BadInput with
    the nearest name when there is none.
    """
    seen = place.get(name, RECORD_REF) if re.fullmatch(NAME, name) else None
    if seen is not None:
        record = records.load(seen.resource.spec)
        return Book(place, record.target.target(), name, record, seen.version)
    known = place.deliveries()
    world = place.world(name) if name in known else None
    key = standing(world, *place.location) if world else None
    if world is None or key is None:
        why = did_you_mean(name, known) or f"known here: {', '.join(known) or 'none'}"
        fix = f"see `deliver list`; {place.elsewhere}"
        raise BadInput(Finding("record.no-such-delivery", f"no delivery is called {name}", why, fix))
    book = Book(place, key.target(), name, Record(key))
    return book.supposing(_rebuilt(book, world, _replicas(world)), {})


def rebuilt(book: Book, replicas: int) -> Record:
    """The book's record; where there is none, but a release has all of the traffic, one
    that says so. Refused where a release runs of which nothing is known: it would be
    deleted.
    """
    if book.version != ABSENT:
        return book.record
    world = book.world()
    must_know(book.delivery, world, book.supposed)
    return _rebuilt(book, world, replicas)


def must_know(delivery: str, world: World, supposed: Iterable[ReleaseId] = ()) -> None:
    """Refused where a release of ``delivery`` runs, and all books of it are gone."""
    found = releases(world)
    known = {*found, *supposed, *(frozen.payload.called for frozen in found.values())}
    for ref, seen in world.objects.items():
        running = ref.kind.demand(seen.resource.spec) if ref.kind.demand else {}
        release = seen.resource.release
        lost = sorted({release} - known if release else running.keys() - known)
        if running and lost and seen.resource.role in RUNS:
            what = f"the books of {delivery} are gone, and {ref} still runs"
            why = f"nothing says what release {lost[0]} was made with"
            fix = f"`deliver up` with the spec that made it; or end it: `deliver down {delivery}`"
            raise Refused(Finding("record.books-gone", what, why, fix))


def _rebuilt(book: Book, world: World, replicas: int) -> Record:
    for name, frozen in {**releases(world), **book.supposed}.items():
        if frozen.address is not None:
            want = replace(book.desired(alone(name, replicas)), address=frozen.address)
            if isinstance(book.target.routed(want, world), Current):
                return rules.restored(book.record, name, replicas, frozen.address)
    return book.record


def _replicas(world: World) -> int:
    """Of what runs, as its manifest says it."""
    demands = (ref.kind.demand(seen.resource.spec) for ref, seen in world.objects.items() if ref.kind.demand)
    return next((count for demand in demands for count, _ in demand.values()), 1)
