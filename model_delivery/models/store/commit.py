"""Fetch a snapshot into its folder: adopt what is whole, move the rest in parallel, write
the manifest last.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from model_delivery.base import Finding, Part, Progress, Refused, Retryable, Trouble, report
from model_delivery.models.manifest import MANIFEST, WORK, folder_name, read_manifest, write_manifest
from model_delivery.models.shards import unheld
from model_delivery.models.sources.spec import ModelSpec
from model_delivery.models.store.filling import Filling
from model_delivery.models.store.origin import origins
from model_delivery.models.store.part import noted, part_of, size_of, written
from model_delivery.models.store.transfer import Patience
from model_delivery.models.store.workspace import Workspace, alone, opened
from model_delivery.models.verify import verify
from model_delivery.values import File, Snapshot

LOST_AND_FOUND = "lost+found"


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


def fetch(
    model: ModelSpec, snapshot: Snapshot, folder: Path, patience: Patience | None = None, user: str = ""
) -> Fetched:
    """One fetcher at a time for each folder; the others wait and adopt. ``user``: for
    whom it is marked in a store, see ``mark_of``.

    Refused when the disk is too small or the model is not whole, Retryable when nothing
    more comes from any source, Permanent when what comes is not what was listed, or the
    folder cannot be written.
    """
    start, moved = time.monotonic(), 0
    parts = Path(folder_name(snapshot)).parts
    in_store = folder.parts[-len(parts) :] == parts
    with _readable_refusals(folder), opened(folder, len(parts) if in_store else 0) as here:
        if user:
            _mark(here / os.pardir / mark_of(folder, user).name)
        if not _whole(here, snapshot):
            with alone(here, _tell) as work:
                if not _whole(here, snapshot):
                    moved = _filled(model, snapshot, work, patience or Patience())
        manifest = read_manifest(here)
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


def mark_of(folder: Path, user: str) -> Path:
    """Beside a model's folder, for each home that uses it: what one keeps, no other's gc
    removes.
    """
    return folder.with_name(f".{folder.name}.{user}.user")


def _mark(mark: Path) -> None:
    try:
        os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644))
    except OSError as error:
        note = f"the store takes no mark of this use, so that its owner's gc may remove it: {error.strerror}"
        report(Progress("fetch", note))


@contextmanager
def _readable_refusals(folder: Path) -> Iterator[None]:
    """What is left of OSErrors is the disk's: whatever comes from elsewhere is told
    there.
    """
    try:
        yield
    except OSError as error:
        name = re.sub(r"^/proc/\d+/fd/\d+", str(folder).replace("\\", r"\\"), str(error.filename or folder))
        with written(name):
            raise


def _whole(folder: Path, snapshot: Snapshot) -> bool:
    manifest = read_manifest(folder)
    return manifest is not None and manifest.of(snapshot) and not verify(folder)


def _filled(model: ModelSpec, snapshot: Snapshot, work: Workspace, patience: Patience) -> int:
    try:
        return _fill(model, snapshot, work, patience)
    except (OSError, Trouble) as error:
        if work.ours():
            raise
        what, why = "another fetch has taken the folder over", "this one gave no sign for 15 s, or its work was removed"
        raise Retryable(Finding("store.taken-over", what, why, "run again")) from error


def _fill(model: ModelSpec, snapshot: Snapshot, work: Workspace, patience: Patience) -> int:
    folder, names = work.folder, {file.path for file in snapshot.files}
    folders = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    with suppress(FileNotFoundError):
        if (folder / MANIFEST).lstat():
            work.discard(folder / MANIFEST)
    work.begin(snapshot)
    _sweep(work, folder, names, folders)
    work.keep({part_of(file, work.path).stem for file in snapshot.files})
    _room(snapshot, work)
    filling = Filling(snapshot, origins(model, snapshot, work.scratch), work, model.allow, patience)
    filling.run()
    if faults := [*unheld(folder, names)]:
        raise Refused(*faults)
    for path in (folder / inner for inner in folders):
        with suppress(PermissionError):  # another's folder that was given to us: it stays as it is
            path.chmod(0o755)
    write_manifest(folder, snapshot, filling.entries, work.path)
    return filling.moved


def _sweep(work: Workspace, folder: Path, names: set[str], folders: set[str]) -> None:
    """Only what is listed stays: anything else was left by a dead run, or would be served
    unverified.
    """
    for entry in list(os.scandir(folder)):
        name = Path(entry.path).relative_to(work.folder).as_posix()
        if entry.is_dir(follow_symlinks=False) and name in folders:
            _sweep(work, Path(entry.path), names, folders)
        elif name in names and entry.is_file(follow_symlinks=False):
            continue
        elif name != LOST_AND_FOUND and not name.startswith(WORK):
            work.discard(Path(entry.path))


def _room(snapshot: Snapshot, work: Workspace) -> None:
    """Refused before the first byte when the disk cannot hold what is still missing."""
    missing = sum(file.size - _there(file, work) for file in snapshot.files)
    free = shutil.disk_usage(work.folder).free
    if missing > free:
        why = f"{missing} bytes are still to come, {free} are free"
        fix = "make room, or use another storage.path"
        raise Refused(Finding("store.disk-full", "the disk is too small for the model", why, fix))


def _there(file: File, work: Workspace) -> int:
    target = work.folder / file.path
    if target.is_file() and target.stat().st_size == file.size:
        return file.size
    return size_of(file, noted(file, part_of(file, work.path))[0])
