"""Where a model lies, and what its manifest says."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from delivery.sources import Snapshot

MANIFEST = ".model-delivery.json"


class Entry(BaseModel):
    """A file as it was verified: size in bytes, sha256 in hex."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    size: int
    sha256: str


class Manifest(BaseModel):
    """Written last: a folder without one is not a model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    manifest_version: Literal[1] = 1
    source: str
    key: str
    commit: str
    files: tuple[Entry, ...]
    created: float


def folder_name(snapshot: Snapshot) -> str:
    """``models/<source>/<key>/<commit>``, relative to the store's root."""
    return f"models/{snapshot.source}/{snapshot.key}/{snapshot.commit}"


def model_folder(root: Path, snapshot: Snapshot) -> Path:
    return root / folder_name(snapshot)


def read_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest; None when there is none, or it cannot be read."""
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValidationError):
        return None
