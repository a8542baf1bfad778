"""Fetch a snapshot into its folder: adopt what is whole, move the rest in parallel, write
the manifest last.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from model_delivery.base import Finding, Part, Permanent, Progress, Refused, Retryable, report
from model_delivery.models.manifest import MANIFEST, read_manifest, write_manifest
from model_delivery.models.sources.spec import ModelSpec
from model_delivery.models.store.filling import Filling
from model_delivery.models.store.lock import alone
from model_delivery.models.store.origin import origins
from model_delivery.models.store.part import noted, size_of, with_parts
from model_delivery.models.store.transfer import Patience
from model_delivery.models.verify import verify
from model_delivery.values import File, Snapshot


class Fetched(Part):
    """A verified model. ``fetched_bytes``: moved now (0: it was there); ``origins``: how
    many files came from which source.
    """

    path: str
    files: int
    bytes: int
    fetched_bytes: int
    seconds: float
    origins: dict[str, int]


def lock_of(folder: Path) -> Path:
    """Beside the folder: whoever fills it holds this file."""
    return folder.with_name(f".{folder.name}.lock")


def fetch(model: ModelSpec, snapshot: Snapshot, folder: Path, patience: Patience | None = None) -> Fetched:
    """One fetcher at a time for each folder; the others wait and adopt.

    Refused when the disk is too small or the model is not whole, Retryable when nothing
    more comes from any source, Permanent when what comes is not what was listed, or the
    folder cannot be written.
    """
    start, moved = time.monotonic(), 0
    with _readable_refusals(folder):
        if not _whole(folder, snapshot):
            with alone(lock_of(folder), _tell) as ours:
                if not _whole(folder, snapshot):
                    moved = _fill(model, snapshot, folder, patience or Patience(), ours)
    manifest = read_manifest(folder)
    if manifest is None:
        what = f"{folder} has lost its manifest"
        raise Retryable(Finding("store.no-manifest", what, "somebody removed it meanwhile", "run again"))
    return Fetched(
        path=str(folder),
        files=len(snapshot.files),
        bytes=snapshot.size,
        fetched_bytes=moved,
        seconds=round(time.monotonic() - start, 3),
        origins=dict(Counter(entry.origin for entry in manifest.files)),
    )


def _tell(who: str) -> None:
    report(Progress("fetch", f"another fetch of this model is at work: waiting for {who}"))


@contextmanager
def _readable_refusals(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"{error.filename or folder} cannot be written"
        fix = "make room, or give this user the right to write there, then run again: it goes on where it was"
        raise Permanent(Finding("store.not-writable", what, error.strerror or type(error).__name__, fix)) from error


def _whole(folder: Path, snapshot: Snapshot) -> bool:
    manifest = read_manifest(folder)
    return manifest is not None and manifest.of(snapshot) and not verify(folder)


def _fill(model: ModelSpec, snapshot: Snapshot, folder: Path, patience: Patience, ours: Callable[[], bool]) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder.with_name(f".{folder.name}.scratch")  # what a source must unpack before it can be copied
    (folder / MANIFEST).unlink(missing_ok=True)
    _sweep(snapshot, folder)
    _room(snapshot, folder)
    filling = Filling(snapshot, origins(model, snapshot, scratch), folder, model.allow, patience)
    filling.run()
    if not ours():
        what = f"another fetch has taken {folder} over"
        raise Retryable(Finding("store.taken-over", what, "this one did not answer for 15 s", "run again"))
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        path.chmod(0o755)
    write_manifest(folder, snapshot, filling.entries)
    shutil.rmtree(scratch, ignore_errors=True)
    return filling.moved


def _sweep(snapshot: Snapshot, folder: Path) -> None:
    """Only what is listed stays, and what was begun of it: anything else was left by a
    dead run, or would be served unverified.
    """
    wanted = with_parts(folder, (file.path for file in snapshot.files))
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_symlink() or (not path.is_dir() and path not in wanted):
            path.unlink()
        elif path.is_dir() and (path in wanted or not any(path.iterdir())):
            shutil.rmtree(path)
    for left in folder.parent.glob(f".{lock_of(folder).name}.*"):
        left.unlink(missing_ok=True)


def _room(snapshot: Snapshot, folder: Path) -> None:
    """Refused before the first byte when the disk cannot hold what is still missing."""
    missing = sum(file.size - _there(file, folder / file.path) for file in snapshot.files)
    free = shutil.disk_usage(folder).free
    if missing > free:
        why = f"{missing} bytes are still to come, {free} are free in {folder}"
        fix = "make room, or use another storage.path"
        raise Refused(Finding("store.disk-full", "the disk is too small for the model", why, fix))


def _there(file: File, target: Path) -> int:
    if target.is_file() and target.stat().st_size == file.size:
        return file.size
    return size_of(file, noted(file, target)[0])
