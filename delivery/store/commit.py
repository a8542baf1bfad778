"""Fetch a snapshot into its folder: adopt what is whole, move the rest in parallel, write the manifest last."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from delivery.findings import Finding, Permanent, Refused, Trouble
from delivery.progress import Progress, report
from delivery.sources import File, Snapshot
from delivery.sources.listing import check_config
from delivery.store.layout import MANIFEST, Entry, model_folder, read_manifest, write_manifest
from delivery.store.lock import alone
from delivery.store.part import Part, chunk_size, notes_of, noted, part_of
from delivery.store.safetensors import check_header
from delivery.store.transfer import STREAMS, Link, Origin, Patience, Stopped
from delivery.store.verify import verify

ROW = 4
SAY_SECONDS = 0.5
SMALL = 1 << 20


class Fetched(BaseModel):
    """A verified model: its folder, its size in files and bytes, and how many bytes were moved now (0: it was there)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    files: int
    bytes: int
    fetched_bytes: int
    seconds: float


def lock_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def fetch(snapshot: Snapshot, origins: Sequence[Origin], root: Path, allow: tuple[str, ...], patience: Patience) -> Fetched:
    """One fetcher at a time for each commit; the others wait and adopt. Refused when the disk is too small or the model is not whole."""
    start = time.monotonic()
    folder = model_folder(root, snapshot)
    folder.mkdir(parents=True, exist_ok=True)
    moved = 0
    if not _whole(folder):
        with alone(lock_of(folder), lambda who: report(Progress("fetch", f"another fetch of this model is at work: waiting for {who}"))) as ours:
            if not _whole(folder):
                filling = _Filling(snapshot, origins, folder, allow, patience)
                filling.run()
                if not ours():
                    raise Permanent(Finding(f"another fetch has taken {folder} over", "this one did not answer for 15 s", "run again"))
                write_manifest(folder, snapshot, filling.entries)
                moved = filling.moved
    return Fetched(
        path=str(folder), files=len(snapshot.files), bytes=snapshot.size, fetched_bytes=moved, seconds=round(time.monotonic() - start, 3)
    )


def _whole(folder: Path) -> bool:
    return read_manifest(folder) is not None and not verify(folder)


class _Filling:
    """Streams that share one list of rows of chunks; small files come first, so that a refusal comes early."""

    def __init__(self, snapshot: Snapshot, origins: Sequence[Origin], folder: Path, allow: tuple[str, ...], patience: Patience) -> None:
        self.snapshot, self.origins, self.folder, self.allow = snapshot, origins, folder, allow
        self.stop, self.lock = threading.Event(), threading.Lock()
        self.link = Link(patience, self._count, self.stop)
        self.moved, self.there = 0, 0
        self.entries: list[Entry] = []
        self.parts: list[Part] = []
        self.rows = self._rows()

    def run(self) -> None:
        (self.folder / MANIFEST).unlink(missing_ok=True)
        self._sweep()
        self._room()
        started = time.monotonic()
        try:
            with ThreadPoolExecutor(STREAMS) as pool:
                streams = [pool.submit(self._stream) for _ in range(STREAMS)]
                try:
                    while not self._ended(streams):
                        self._say(started)
                finally:
                    self.stop.set()
            self._say(started)
            self._raise(streams)
        finally:
            for part in self.parts:
                part.close()

    def _ended(self, streams: list[Future[None]]) -> bool:
        done, running = wait(streams, SAY_SECONDS, return_when=FIRST_EXCEPTION)
        return not running or any(stream.exception() for stream in done)

    def _raise(self, streams: list[Future[None]]) -> None:
        errors = [error for stream in streams if (error := stream.exception()) is not None]
        for error in errors:
            if not isinstance(error, Stopped):
                raise error

    def _rows(self) -> Iterator[tuple[Part, range]]:
        for file in sorted(self.snapshot.files, key=lambda file: (file.size > SMALL, file.path)):
            part = Part(file, self.folder / file.path)
            self.parts.append(part)
            self.there += sum(chunk_size(file, number) for number in part.done)
            rows = list(part.missing(ROW))
            yield from ((part, row) for row in rows or [range(0)])

    def _stream(self) -> None:
        while not self.stop.is_set():
            with self.lock:
                part, row = next(self.rows, (None, range(0)))
            if part is None:
                return
            self._fill(part, row)
            if part.advance():
                self._finish(part)

    def _fill(self, part: Part, row: range) -> None:
        """From the first source that gives it. The next one is asked when a source says no, or nothing more comes from it."""
        while row and not part.alone:
            tried = part.tried
            try:
                return self.link.fill(part, row, self.origins[tried])
            except Trouble as trouble:
                if tried + 1 >= len(self.origins):
                    raise
                self._next_origin(part, tried, trouble)
        return None

    def _next_origin(self, part: Part, tried: int, trouble: Trouble) -> None:
        part.tried = max(part.tried, tried + 1)
        report(Progress("fetch", f"{trouble.findings[0].what}: {part.file.path} is taken from {self.origins[part.tried].name}"))

    def _finish(self, part: Part) -> None:
        """Its bytes are all there: compare, look inside, give it its name."""
        while fault := part.fault():
            if not part.resumed:
                if part.tried + 1 >= len(self.origins):
                    part.discard()
                    what = f"{part.file.path} is not what was listed"
                    raise Permanent(Finding(what, fault, "run again; if it stays so, the source or what lies between is broken"))
                part.tried += 1
            part.restart()
            part.alone = False
            self._fill(part, range(part.count))
            part.advance()
        self._look_inside(part)
        part.keep()
        entry = Entry(path=part.file.path, size=part.file.size, sha256=part.sha256, origin="+".join(sorted(part.origins)))
        with self.lock:
            self.entries.append(entry)

    def _look_inside(self, part: Part) -> None:
        if part.file.path == "config.json":
            check_config(part.path.read_bytes(), self.allow)
        if part.file.path.endswith(".safetensors") and (fault := check_header(part.path, part.file.path)):
            raise Refused(fault)

    def _room(self) -> None:
        """Refused before the first byte when the disk cannot hold what is still missing."""
        missing = sum(file.size - self._there(file) for file in self.snapshot.files)
        free = shutil.disk_usage(self.folder).free
        if missing > free:
            why = f"{missing} bytes are still to come, {free} are free in {self.folder}"
            raise Refused(Finding("the disk is too small for the model", why, "make room, or use another storage.path"))

    def _there(self, file: File) -> int:
        target = self.folder / file.path
        if target.is_file() and target.stat().st_size == file.size:
            return file.size
        return sum(chunk_size(file, number) for number in noted(file, target))

    def _sweep(self) -> None:
        """Only what is listed stays, and what was begun of it: anything else was left by a dead run, or would be served unverified."""
        targets = [self.folder / file.path for file in self.snapshot.files]
        wanted = {path for target in targets for path in (target, part_of(target), notes_of(target))}
        for path in self.folder.rglob("*"):
            if not path.is_dir() and path not in wanted:
                path.unlink()

    def _count(self, size: int) -> None:
        with self.lock:
            self.moved += size

    def _say(self, started: float) -> None:
        rate = self.moved / max(time.monotonic() - started, 1e-6)
        done = self.there + self.moved
        left = max(0.0, self.snapshot.size - done) / rate if rate else None
        report(Progress("fetch", "", done=min(done, self.snapshot.size), total=self.snapshot.size, unit="B", rate=rate, eta=left))
