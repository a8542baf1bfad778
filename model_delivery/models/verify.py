"""Does a folder hold what its manifest says? Offline, from the manifest alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from model_delivery.base import Finding, Progress, report
from model_delivery.models.manifest import MANIFEST, WORK, read_manifest

if TYPE_CHECKING:
    from hashlib import _Hash

CHUNK = 1 << 20


def verify(folder: Path, *, deep: bool = False) -> list[Finding]:
    """What is wrong, empty when nothing is. ``deep`` reads every byte; else names and
    sizes are compared, and the bytes of what was written since the manifest was.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        broken = (folder / MANIFEST).exists()
        why = "it was changed or cut" if broken else "it was never fetched to its end"
        what = f"{folder} has {'a broken' if broken else 'no'} manifest"
        return [Finding("store.no-manifest", what, why, "fetch it again")]
    faults, since = list[Finding](), (folder / MANIFEST).stat().st_mtime_ns
    for entry in manifest.files:
        path, fix = folder / entry.path, "fetch the model again"
        if path.is_symlink():
            what = f"{entry.path} is a symbolic link"
            faults.append(Finding("store.link", what, "what it leads to may change", fix))
        elif fault := misfit(path, entry.path, entry.size, fix):
            faults.append(fault)
        elif (deep or path.stat().st_mtime_ns > since) and hash_file(path, entry.path) != entry.sha256:
            why = "its sha256 is another one than the manifest's"
            faults.append(Finding("store.sum-differs", f"{entry.path} was changed", why, fix))
    named = {MANIFEST, *(entry.path for entry in manifest.files)}
    why, fix = "it would be served unverified", "remove it, or fetch the model again"
    return faults + [
        Finding("store.file-too-many", f"{name} is not in the manifest", why, fix)
        for name in names_in(folder)
        if name not in named
    ]


def names_in(folder: Path) -> list[str]:
    """All files below ``folder``, links too, sorted; what a fetch works with is left
    out.
    """
    return sorted(name for name in all_in(folder) if name == MANIFEST or not name.startswith(WORK))


def all_in(folder: Path) -> Iterator[str]:
    return (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())


def misfit(path: Path, name: str, size: int, fix: str) -> Finding | None:
    """What is wrong with a file (called ``name``) before a byte is read."""
    why = f"it should have {size} bytes"
    if not path.is_file():
        return Finding("store.file-missing", f"{name} is missing", why, fix)
    if (now := path.stat().st_size) != size:
        return Finding("store.size-differs", f"{name} is {now} bytes long", why, fix)
    return None


def hash_file(path: Path, name: str = "", total: _Hash | None = None) -> str:
    """The sha256 of a file (or its ``total`` of another kind), with progress for large
    ones.
    """
    total, done, size = total or hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            total.update(chunk)
            done += len(chunk)
            if done % (CHUNK * 256) == 0:
                report(Progress("verify", f"hashing {name or path.name}", done=done, total=size, unit="B"))
    return total.hexdigest()


def hash_git(path: Path) -> str:
    """The sha1 by which git knows a file's content."""
    return hash_file(path, total=blob(path.stat().st_size))


def blob(size: int) -> _Hash:
    """Git's sum of a file of ``size`` bytes, before its first one."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
