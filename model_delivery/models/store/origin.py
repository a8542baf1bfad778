"""Who may give a file's bytes, in turn: the source that listed it, then the others of
``model.fallback``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from model_delivery.base import Finding
from model_delivery.models.listing import is_weights
from model_delivery.models.sources.http import NotGiven
from model_delivery.models.sources.spec import Local, ModelSpec, Remote
from model_delivery.values import File, Snapshot


@dataclass(frozen=True)
class Origin:
    """A source that may have the bytes: ``locate`` says where those of a file are, as of
    now (a signed address expires).
    """

    name: str
    locate: Callable[[File], Remote | Local]


def origins(model: ModelSpec, snapshot: Snapshot, scratch: Path) -> tuple[Origin, ...]:
    """First the one that ``snapshot`` was resolved from; the rest give what has the
    hashes that it lists, and nothing else.
    """
    models = (model, *model.fallbacks())
    exact = [(m.source, m.key) for m in models].index((snapshot.source, snapshot.key))
    source = models[exact].open()
    first = Origin(models[exact].name, lambda file: source.locate(snapshot.commit, file, scratch / str(exact)))
    others = (_Other(m, scratch / str(n)) for n, m in enumerate(models) if n != exact)
    return (first, *(Origin(other.name, other.locate) for other in others))


class _Other:
    """Lists its own files when the first one is asked of it, and gives those whose sha256
    is the wanted one.
    """

    def __init__(self, model: ModelSpec, scratch: Path) -> None:
        self.name, self.source, self.scratch = model.name, model.open(), scratch
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None

    def locate(self, file: File) -> Remote | Local:
        fix = "pin it in model.pins, or wait for the first source"
        if file.sha256 is None and is_weights(file.path):
            what = f"{file.path} is not taken from {self.name}"
            raise NotGiven(Finding("source.no-hash", what, "nobody has stated its sha256", fix))
        with self._lock:
            self._snapshot = self._snapshot or self.source.resolve()
        entry = next((f for f in self._snapshot.files if f.path == file.path), None)
        if entry is None:
            what = f"{self.name} has no {file.path}"
            raise NotGiven(Finding("source.no-file", what, "its list does not name it", fix))
        if entry.sha256 and file.sha256 and entry.sha256 != file.sha256:
            why = f"it lists sha256 {entry.sha256}, wanted is {file.sha256}"
            raise NotGiven(Finding("source.another-file", f"{self.name} has another {file.path}", why, fix))
        return self.source.locate(self._snapshot.commit, entry, self.scratch)
