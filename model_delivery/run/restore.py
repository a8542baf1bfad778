"""A delivery's own books, where somebody deleted one of them."""

from __future__ import annotations

from dataclasses import replace

from model_delivery.run import rules
from model_delivery.run.book import Book
from model_delivery.run.frozen import releases
from model_delivery.run.record import Record, alone
from model_delivery.values import ABSENT, Current


def rebuilt(book: Book, replicas: int) -> Record:
    """The book's record; where there is none, but a release has all of the traffic, one
    that says so.
    """
    if book.version != ABSENT:
        return book.record
    world = book.world()
    for name, frozen in releases(world).items():
        if frozen.address is not None:
            want = replace(book.desired(alone(name, replicas)), address=frozen.address)
            if isinstance(book.target.routed(want, world), Current):
                return rules.restored(book.record, name, replicas, frozen.address)
    return book.record
