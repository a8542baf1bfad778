"""Does a folder hold what its manifest says? Offline, from the manifest alone."""

from __future__ import annotations

from pathlib import Path

from delivery.findings import Finding
from delivery.sources.local import hash_file
from delivery.store.layout import read_manifest


def verify(folder: Path, *, deep: bool = False) -> list[Finding]:
    """What is wrong, empty when nothing is. ``deep`` reads every byte; else sizes are compared."""
    manifest = read_manifest(folder)
    if manifest is None:
        return [Finding(f"{folder} has no manifest", "it was never fetched to its end", "fetch it again")]
    found = []
    for entry in manifest.files:
        path = folder / entry.path
        size = path.stat().st_size if path.is_file() else None
        if size != entry.size:
            found.append(
                Finding(
                    f"{entry.path} is {'missing' if size is None else f'{size} bytes long'}",
                    f"it should have {entry.size} bytes",
                    "fetch the model again",
                )
            )
        elif deep and hash_file(path) != entry.sha256:
            found.append(Finding(f"{entry.path} was changed", "its sha256 is another one than the manifest's", "fetch the model again"))
    return found
