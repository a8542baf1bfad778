"""Fetch a snapshot into its folder: adopt what is whole, move the rest, write the manifest last."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from delivery.findings import Finding, Refused
from delivery.progress import Progress, report
from delivery.secrets import Secret
from delivery.sources import File, Snapshot, Source
from delivery.sources.listing import check_config
from delivery.store.layout import MANIFEST, Entry, Manifest, model_folder, read_manifest
from delivery.store.safetensors import check_header
from delivery.store.transfer import part_of, transfer
from delivery.store.verify import verify


class Fetched(BaseModel):
    """A verified model: its folder, its size in files and bytes, and how many bytes were moved now (0: it was there)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    files: int
    bytes: int
    fetched_bytes: int
    seconds: float


def fetch(source: Source, snapshot: Snapshot, root: Path, token: Secret | None, allow: tuple[str, ...]) -> Fetched:
    """One fetcher at a time for each commit; the others wait and adopt. Refused when the disk is too small or the model is not whole."""
    start = time.monotonic()
    folder = model_folder(root, snapshot)
    folder.mkdir(parents=True, exist_ok=True)
    moved = 0
    with _alone(folder):
        if read_manifest(folder) is None or verify(folder):
            moved = _fill(source, snapshot, folder, token, allow)
    return Fetched(
        path=str(folder), files=len(snapshot.files), bytes=snapshot.size, fetched_bytes=moved, seconds=round(time.monotonic() - start, 3)
    )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(Progress("fetch", "waiting for another fetch of this model"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fill(source: Source, snapshot: Snapshot, folder: Path, token: Secret | None, allow: tuple[str, ...]) -> int:
    (folder / MANIFEST).unlink(missing_ok=True)
    _room(snapshot, folder)
    meter = _Meter(snapshot)
    entries, moved = [], 0
    for file in sorted(snapshot.files, key=lambda file: file.size):
        sha256, count = _one(source, snapshot, file, folder, token, meter)
        entries.append(Entry(path=file.path, size=file.size, sha256=sha256))
        moved += count
        if file.path == "config.json":
            check_config((folder / file.path).read_bytes(), allow)
        if file.path.endswith(".safetensors") and (fault := check_header(folder / file.path)):
            raise Refused(fault)
    _sweep(folder, snapshot)
    manifest = Manifest(source=snapshot.source, key=snapshot.key, commit=snapshot.commit, files=tuple(entries), created=time.time())
    temporary = folder / f"{MANIFEST}.new"
    temporary.write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    for path in (temporary, folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    temporary.replace(folder / MANIFEST)
    return moved


def _one(source: Source, snapshot: Snapshot, file: File, folder: Path, token: Secret | None, meter: _Meter) -> tuple[str, int]:
    target = folder / file.path
    if target.is_file() and target.stat().st_size == file.size:
        target.replace(part_of(target))
    return transfer(file, source.locate(snapshot.commit, file, token), target, meter.count)


def _room(snapshot: Snapshot, folder: Path) -> None:
    """Refused before the first byte when the disk cannot hold what is still missing."""
    missing = 0
    for file in snapshot.files:
        target = folder / file.path
        have = next((path.stat().st_size for path in (target, part_of(target)) if path.is_file()), 0)
        missing += max(0, file.size - have)
    free = shutil.disk_usage(folder).free
    if missing > free:
        why = f"{missing} bytes are still to come, {free} are free in {folder}"
        raise Refused(Finding("the disk is too small for the model", why, "make room, or use another storage.path"))


def _sweep(folder: Path, snapshot: Snapshot) -> None:
    """Only what was listed stays: another file would be served unverified."""
    wanted = {folder / file.path for file in snapshot.files}
    for path in folder.rglob("*"):
        if path.is_file() and path not in wanted:
            path.unlink()


class _Meter:
    """Progress twice a second: bytes, rate, time to go."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.total, self.done, self.start, self.said = snapshot.size, 0, time.monotonic(), 0.0

    def count(self, size: int) -> None:
        self.done += size
        now = time.monotonic()
        if now - self.said >= 0.5 or self.done >= self.total:
            self.said = now
            rate = self.done / max(now - self.start, 1e-6)
            report(
                Progress(
                    "fetch", "", done=self.done, total=self.total, unit="B", rate=rate, eta=max(0.0, self.total - self.done) / max(rate, 1)
                )
            )
