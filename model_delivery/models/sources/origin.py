"""Who may give a file's bytes, in turn: the source that listed it, then the others of ``model.fallback``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from model_delivery.base.findings import Finding
from model_delivery.base.secrets import Secret, SecretRef, read_secret
from model_delivery.models.sources import Local, Remote, Source, open_source
from model_delivery.models.sources.http import NotGiven
from model_delivery.models.sources.listing import is_weights
from model_delivery.models.sources.model import GitModel, HuggingFaceModel, LocalModel, Model, ModelScopeModel
from model_delivery.values.snapshot import File, Snapshot


@dataclass(frozen=True)
class Origin:
    """A source that may have the bytes: ``locate`` says where those of a file are, as of now (a signed address expires)."""

    name: str
    locate: Callable[[File], Remote | Local]


def origins(model: Model, snapshot: Snapshot, scratch: Path) -> tuple[Origin, ...]:
    """First the one that ``snapshot`` was resolved from; the rest give what has the hashes that it lists, and nothing else."""
    models = [model, *fallbacks(model)]
    sources = [open_source(one) for one in models]
    pairs = [(str(one.source), source.key) for one, source in zip(models, sources, strict=True)]
    exact = pairs.index((snapshot.source, snapshot.key))
    first, token = sources[exact], token_of(models[exact])
    others = [_Other(sources[n], token_of(models[n]), scratch / str(n)) for n in range(len(models)) if n != exact]
    mine = Origin(first.name, lambda file: first.locate(snapshot.commit, file, scratch / str(exact), _read(token)))
    return (mine, *(Origin(other.source.name, other.locate) for other in others))


def fallbacks(model: Model) -> Iterator[Model]:
    """Each entry of ``model.fallback`` as a model of its own, with the files and permissions of ``model``."""
    if isinstance(model, LocalModel):
        return
    more = model.model_dump(include={"include", "exclude", "allow", "pins"})
    for one in model.fallback:
        given = {**more, **one.model_dump()}
        match one.source:
            case "huggingface":
                yield HuggingFaceModel.model_validate(given)
            case "modelscope":
                yield ModelScopeModel.model_validate(given)
            case "git":
                yield GitModel.model_validate(given)


def token_of(model: Model) -> SecretRef | None:
    return None if isinstance(model, LocalModel) else model.token


def _read(ref: SecretRef | None) -> Secret | None:
    return None if ref is None else read_secret(ref)


class _Other:
    """Lists its own files when the first one is asked of it, and gives those whose sha256 is the wanted one."""

    def __init__(self, source: Source, token: SecretRef | None, scratch: Path) -> None:
        self.source, self.token, self.scratch = source, token, scratch
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None

    def locate(self, file: File) -> Remote | Local:
        fix = "pin it in model.pins, or wait for the first source"
        if file.sha256 is None and is_weights(file.path):
            raise NotGiven(
                Finding(
                    "todo", f"{file.path} is not taken from {self.source.name}", "nobody has stated its sha256", fix
                )
            )
        with self._lock:
            self._snapshot = self._snapshot or self.source.resolve(_read(self.token))
        mine = next((one for one in self._snapshot.files if one.path == file.path), None)
        if mine is None:
            raise NotGiven(Finding("todo", f"{self.source.name} has no {file.path}", "its list does not name it", fix))
        if mine.sha256 and file.sha256 and mine.sha256 != file.sha256:
            why = f"it lists sha256 {mine.sha256}, wanted is {file.sha256}"
            raise NotGiven(Finding("todo", f"{self.source.name} has another {file.path}", why, fix))
        return self.source.locate(self._snapshot.commit, mine, self.scratch, _read(self.token))
