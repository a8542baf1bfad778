"""Sources say where a model's bytes are; one transfer engine (``model_delivery.models.store``) moves them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from model_delivery.base.secrets import Secret
from model_delivery.models.sources.model import GitModel, HuggingFaceModel, LocalModel, Model, ModelScopeModel
from model_delivery.values.snapshot import File, Snapshot


@dataclass(frozen=True)
class Remote:
    """Bytes behind HTTP, ranges allowed; the headers go to this URL's host only."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Local:
    """Bytes in a file of this machine."""

    path: Path


class Source(Protocol):
    """Where a model comes from."""

    @property
    def name(self) -> str:
        """What people and manifests call it: ``huggingface org/model``."""

    @property
    def key(self) -> str:
        """``Snapshot.key`` of what it resolves to."""

    def resolve(self, token: Secret | None) -> Snapshot:
        """List first: the commit and its files, names and kinds checked. Retryable or Refused otherwise."""

    def locate(self, commit: str, file: File, scratch: Path, token: Secret | None) -> Remote | Local:
        """Where a file's bytes are, as of now; what must be unpacked first goes to ``scratch``, a folder of this fetch's own."""


def open_source(model: Model) -> Source:
    """The source of a spec's model."""
    match model:
        case HuggingFaceModel():
            from model_delivery.models.sources.huggingface import HuggingFace

            return HuggingFace(model)
        case ModelScopeModel():
            from model_delivery.models.sources.modelscope import ModelScope

            return ModelScope(model)
        case GitModel():
            from model_delivery.models.sources.git import Git

            return Git(model)
        case LocalModel():
            from model_delivery.models.sources.local import LocalFolder

            return LocalFolder(model)
