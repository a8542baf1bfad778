"""Where a model lies, and what its manifest says."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from model_delivery.base import Finding, Part, Permanent, read_file, replace_file, sync
from model_delivery.values import Snapshot, digest

MANIFEST = ".model-delivery.json"
WORK = ".model-delivery"  # a fetch works there; no name of a model begins so
MODELS = "models"


class Entry(Part):
    """A file as it was verified: size in bytes, sha256 in hex, and which source gave its
    bytes.
    """

    path: str
    size: int
    sha256: str
    origin: str = ""


class Manifest(Part):
    """Written last: a folder without one is not a model. ``digest`` is of everything else
    in it.
    """

    manifest_version: Literal[1] = 1
    source: str
    key: str
    commit: str
    files: tuple[Entry, ...]
    created: float
    digest: str = ""

    def of(self, snapshot: Snapshot) -> bool:
        """Is it the manifest of that commit, and of those of its files?"""
        there = {entry.path: (entry.size, entry.sha256) for entry in self.files}
        listed = {f.path: (f.size, f.sha256 or there.get(f.path, ("", ""))[1]) for f in snapshot.files}
        same = (self.source, self.key, self.commit) == (snapshot.source, snapshot.key, snapshot.commit)
        return same and there == listed

    def expected_digest(self) -> str:
        return digest(self.model_dump(mode="json", exclude={"digest"}), 64)


def folder_name(snapshot: Snapshot) -> str:
    """``models/<source>/<key>/<commit>``, relative to the store's root."""
    return f"{MODELS}/{snapshot.source}/{snapshot.key}/{snapshot.commit}"


def model_folder(root: Path, snapshot: Snapshot) -> Path:
    return root / folder_name(snapshot)


def read_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest; None when there is none, it cannot be read, or its digest is
    not its own.
    """
    try:
        manifest = Manifest.model_validate_json(read_file(folder / MANIFEST))
    except (OSError, ValidationError):
        return None
    return manifest if manifest.digest == manifest.expected_digest() else None


def write_manifest(folder: Path, snapshot: Snapshot, files: Iterable[Entry], work: Path | None = None) -> None:
    """By rename from ``work``, after everything that it names is on the disk. Permanent
    where that is not all that is listed.
    """
    named = tuple(sorted(files, key=lambda entry: entry.path))
    if [(entry.path, entry.size) for entry in named] != sorted((file.path, file.size) for file in snapshot.files):
        what, why = "the model is not whole", f"{len(snapshot.files)} files are listed, {len(named)} were brought"
        raise Permanent(Finding("store.not-whole", what, why, "run again: it goes on where it was"))
    bare = Manifest(source=snapshot.source, key=snapshot.key, commit=snapshot.commit, files=named, created=time.time())
    text = bare.model_copy(update={"digest": bare.expected_digest()}).model_dump_json(indent=1)
    replace_file(folder / MANIFEST, text, 0o644, (work or folder) / f"{MANIFEST}.new")
    sync(folder)
