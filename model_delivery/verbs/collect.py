"""What is due of a delivery: an approval that nobody gave, a standby whose time is over,
steps of ended attempts, releases that no rollback can want. A claim is never touched.
"""

from __future__ import annotations

import uuid

from model_delivery.base import Finding, Refused, SystemClock
from model_delivery.places import Place
from model_delivery.run import protocol, rules
from model_delivery.run.book import Book
from model_delivery.run.lease import held
from model_delivery.run.restore import read
from model_delivery.run.session import opened
from model_delivery.values import ABSENT, Rollout


def collect(place: Place, name: str, kept: Rollout, *, dry_run: bool) -> tuple[str, ...]:
    """What went, or in a dry run would, as lines. Refused while a run is at work on
    it.
    """
    book = read(place, name)
    if book.version == ABSENT:
        return ()  # somebody deleted its record: what stands is nobody's to remove
    if dry_run and held(place, name):
        what, why = f"another run is delivering {name}", "what is due is known when it has ended"
        raise Refused(Finding("lease.held", what, why, "wait for it to end"))
    if dry_run:
        return _due(book, kept)
    with opened(place, name, book.record.target, request=uuid.uuid4().hex, when_busy="refuse") as session:
        due = _due(session, kept)
        if due:
            protocol.collect(session, kept)
        return due


def _due(book: Book, kept: Rollout) -> tuple[str, ...]:
    record, now = book.record, SystemClock().now()
    lapsed = rules.lapsed(record, now)
    if record.candidate is not None and not lapsed:
        return ()
    ends = [f"release {record.candidate.release}: {rules.LAPSED}"] if record.candidate else []
    over = sorted(record.beside_serving) if rules.standby_over(record, now) else ()
    ends += [f"release {name}: its standby is over" for name in over]
    return (*ends, *(str(ref) for ref in book.leftovers(kept.keep)))
