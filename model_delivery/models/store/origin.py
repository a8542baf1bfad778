"""Who may give a file's bytes, in turn: the source that listed it, then the others of
``model.fallback``.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from model_delivery.base import Finding
from model_delivery.models.listing import is_weights
from model_delivery.models.sources.http import NotGiven
from model_delivery.models.sources.spec import Local, ModelSpec, Remote
from model_delivery.values import File, Snapshot


@dataclass
class Origin:
    """A source that may have the bytes: ``locate`` says where those of a file are, as of
    now (a signed address expires).
    """

    model: ModelSpec
    scratch: Path
    snapshot: Snapshot

    @property
    def name(self) -> str:
        return self.model.name

    def locate(self, file: File) -> Remote | Local:
        return self.model.locate(self.snapshot.commit, file, self.scratch)


def origins(model: ModelSpec, snapshot: Snapshot, scratch: Path) -> tuple[Origin, ...]:
    """First the one that ``snapshot`` was resolved from; the rest give what has the
    hashes that it lists, and nothing else.
    """
    models = (model, *model.fallbacks())
    exact = [(m.source, m.key) for m in models].index((snapshot.source, snapshot.key))
    others = (_Other(m, scratch / str(n)) for n, m in enumerate(models) if n != exact)
    return (Origin(models[exact], scratch / str(exact), snapshot), *others)


class _Other(Origin):
    """Lists its own files when the first one is asked of it, and gives those whose sha256
    is the wanted one.
    """

    def __init__(self, model: ModelSpec, scratch: Path) -> None:
        self.model, self.scratch, self._lock = model, scratch, threading.Lock()

    @cached_property
    def snapshot(self) -> Snapshot:  # type: ignore[override]
        return self.model.resolve()

    def locate(self, file: File) -> Remote | Local:
        fix = "pin it in model.pins, or wait for the first source"
        if file.sha256 is None and is_weights(file.path):
            what = f"{file.path} is not taken from {self.name}"
            raise NotGiven(Finding("source.no-hash", what, "nobody has stated its sha256", fix))
        with self._lock:
            entry = next((f for f in self.snapshot.files if f.path == file.path), None)
        if entry is None:
            what = f"{self.name} has no {file.path}"
            raise NotGiven(Finding("source.no-file", what, "its list does not name it", fix))
        if entry.sha256 and file.sha256 and entry.sha256 != file.sha256:
            why = f"it lists sha256 {entry.sha256}, wanted is {file.sha256}"
            raise NotGiven(Finding("source.another-file", f"{self.name} has another {file.path}", why, fix))
        return super().locate(entry)
