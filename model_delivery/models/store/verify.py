"""Does a folder hold what its manifest says? Offline, from the manifest alone."""

from __future__ import annotations

import hashlib
from pathlib import Path

from model_delivery.base.findings import Finding
from model_delivery.base.progress import Progress, report
from model_delivery.models.store.layout import MANIFEST, read_manifest

CHUNK = 1 << 20


def verify(folder: Path, *, deep: bool = False) -> list[Finding]:
    """What is wrong, empty when nothing is. ``deep`` reads every byte; else names and sizes are compared."""
    manifest = read_manifest(folder)
    if manifest is None:
        there = (folder / MANIFEST).exists()
        what, why = (
            ("a broken manifest", "it was changed or cut")
            if there
            else ("no manifest", "it was never fetched to its end")
        )
        return [Finding("todo", f"{folder} has {what}", why, "fetch it again")]
    found = [
        fault
        for entry in manifest.files
        if (fault := _fault(folder / entry.path, entry.path, entry.size, entry.sha256 if deep else ""))
    ]
    named = {MANIFEST, *(entry.path for entry in manifest.files)}
    extra = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or path.is_file()
    )
    found += [
        Finding(
            "todo",
            f"{path} is not in the manifest",
            "it would be served unverified",
            "remove it, or fetch the model again",
        )
        for path in extra
        if path not in named
    ]
    return found


def _fault(path: Path, name: str, size: int, sha256: str) -> Finding | None:
    fix = "fetch the model again"
    if path.is_symlink() or not path.is_file():
        return Finding(
            "todo",
            f"{name} is {'a symbolic link' if path.is_symlink() else 'missing'}",
            f"it should have {size} bytes",
            fix,
        )
    if (now := path.stat().st_size) != size:
        return Finding("todo", f"{name} is {now} bytes long", f"it should have {size} bytes", fix)
    if sha256 and hash_file(path, name) != sha256:
        return Finding("todo", f"{name} was changed", "its sha256 is another one than the manifest's", fix)
    return None


def hash_file(path: Path, name: str = "") -> str:
    """The sha256 of a file, with progress for large ones."""
    sha, done, size = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            sha.update(chunk)
            done += len(chunk)
            if done % (CHUNK * 256) == 0:
                report(Progress("verify", f"hashing {name or path.name}", done=done, total=size, unit="B"))
    return sha.hexdigest()


def hash_git(path: Path) -> str:
    """The sha1 by which git knows a file's content."""
    sha = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            sha.update(chunk)
    return sha.hexdigest()
