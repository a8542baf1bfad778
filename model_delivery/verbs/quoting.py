"""Of a log nothing is quoted before the secrets of the engine that wrote it are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from model_delivery.base import Trouble
from model_delivery.places import Place
from model_delivery.run.book import Book
from model_delivery.values import Observed, ReleaseId, World

LOGS = ("log", "log_tail")


def unknown_secret(book: Book, *others: ReleaseId) -> str:
    """Why a secret of what serves, is tried or runs (or of ``others``) cannot be read;
    empty: this process knows them all, and they are scrubbed.
    """
    record, why = book.record, ""
    tried = record.candidate.release if record.candidate else None
    for release in dict.fromkeys((record.serving, tried, *(name for name, _ in record.desired.releases), *others)):
        try:
            refs = book.frozen(release).payload.secrets if release else ()
        except Trouble as trouble:
            why = trouble.findings[0].what
            continue
        for ref in refs:
            try:
                book.place.secret(ref)
            except Trouble as trouble:
                why = trouble.findings[0].what
    return why


def unquoted(book: Book) -> Book:
    """Its place shows nothing of any log."""
    return replace(book, place=cast("Place", _Unquoted(book.place)))


@dataclass(frozen=True)
class _Unquoted:
    _place: Place

    def __getattr__(self, name: str) -> Any:
        return getattr(self._place, name)

    def world(self, delivery: str) -> World:
        seen = self._place.world(delivery)
        objects = {ref: _silent(one) for ref, one in seen.objects.items()}
        return replace(seen, objects=objects, beside=hushed(seen.beside))


def _silent(seen: Observed) -> Observed:
    return replace(seen, status=hushed(seen.status))


def hushed(told: Any) -> Any:
    """A container's last words are its log's, too."""
    if isinstance(told, Mapping):
        quiet = {key: hushed(value) for key, value in told.items()}
        quiet |= {key: "" for key in LOGS if isinstance(told.get(key), str)}
        if isinstance(told.get("terminated"), Mapping):
            quiet["terminated"] = {**told["terminated"], "message": ""}
        return quiet
    return type(told)(map(hushed, told)) if isinstance(told, list | tuple) else told
