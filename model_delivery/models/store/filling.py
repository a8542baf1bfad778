"""Fills one folder: sixteen streams share one list of rows of chunks; each file is
compared and looked into before it gets its name.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextvars import copy_context

from model_delivery.base import Progress, Refused, Retryable, Stopped, Trouble, report, stopped
from model_delivery.models.contents import fault_in
from model_delivery.models.manifest import Entry
from model_delivery.models.store.origin import Origin
from model_delivery.models.store.part import Part, chunks_in, size_of
from model_delivery.models.store.transfer import STREAMS, LeftToAnother, Link, Patience, unlisted
from model_delivery.models.store.workspace import Workspace
from model_delivery.values import Snapshot

ROW = 8
SAY_SECONDS = 0.5
RATE_SECONDS = 10.0
SMALL = 1 << 20


class Filling:
    """Small files come first, so that a refusal comes early. After ``run``: ``entries``
    of the manifest, and ``moved`` bytes.
    """

    def __init__(
        self, snapshot: Snapshot, origins: Sequence[Origin], work: Workspace, allow: tuple[str, ...], patience: Patience
    ) -> None:
        self.snapshot, self.origins, self.work, self.allow = snapshot, origins, work, allow
        self.stop, self.lock = threading.Event(), threading.Lock()
        self.link = Link(patience, self._count, self.stop)
        self.moved = self.there = self.first = 0
        self.entries: list[Entry] = []
        self.parts: list[Part] = []
        self.rows = self._rows()
        self.seen = [(time.monotonic(), 0)]

    def run(self) -> None:
        """Raises the first trouble of any stream, after all have stopped."""
        streams: list[Future[None]] = []
        self.work.busy.set()
        try:
            with ThreadPoolExecutor(STREAMS) as pool:
                try:
                    streams.extend(pool.submit(copy_context().run, self._stream) for _ in range(STREAMS))
                    while not self._ended(streams):
                        self._say()
                        self.link.give_up()
                finally:
                    self.link.halt()
            self._say()
            errors = [e for stream in streams if (e := stream.exception()) and not isinstance(e, Stopped)]
            if errors:
                raise next((e for e in errors if isinstance(e, Trouble)), errors[0])
        finally:
            if all(stream.done() for stream in streams):
                for part in self.parts:
                    part.close()
                self.work.busy.clear()

    def _ended(self, streams: list[Future[None]]) -> bool:
        done, running = wait(streams, SAY_SECONDS, return_when=FIRST_EXCEPTION)
        return not running or any(stream.exception() for stream in done)

    def _rows(self) -> Iterator[tuple[Part, range]]:
        """Long rows first, short ones at the end, so that all streams end together; one
        empty row for a file that is whole already.
        """
        left = sum(chunks_in(file) for file in self.snapshot.files)
        for file in sorted(self.snapshot.files, key=lambda file: (file.size > SMALL, file.path)):
            part = Part(file, self.work.folder / file.path, self.work.path)
            self.parts.append(part)
            self.there += size_of(file, part.done)
            left -= len(part.done)
            missing = [number for number in range(part.count) if number not in part.done]
            if not missing:
                yield part, range(0)
            while missing:
                most = max(1, min(ROW, left // (2 * STREAMS)))
                row = [number for place, number in enumerate(missing[:most]) if number == missing[0] + place]
                missing = missing[len(row) :]
                left -= len(row)
                yield part, range(row[0], row[-1] + 1)

    def _stream(self) -> None:
        stopped.set(self.stop)
        while not self.stop.is_set():
            with self.lock:
                part, row = next(self.rows, (None, range(0)))
            if part is None:
                return
            if part.join():
                self._bring(part, row)
                part.advance()
                if part.leave():
                    self._finish(part)

    def _bring(self, part: Part, row: range) -> None:
        """From the first source that gives it. The next one is asked when a source says
        no; for all files from then on, when nothing more comes from it.
        """
        while not self.stop.is_set() and (missing := part.missing(row)):
            tried = part.tried = max(part.tried, self.first)
            try:
                self.link.fill(part, missing[0], self.origins[tried])
            except LeftToAnother:
                return
            except Trouble as trouble:
                self._next_origin(part, tried, trouble)

    def _next_origin(self, part: Part, tried: int, trouble: Trouble) -> None:
        with self.lock:
            part.troubles += (trouble,)
            if tried + 1 >= len(self.origins):
                raise type(trouble)(*(finding for each in part.troubles for finding in each.findings)) from trouble
            if isinstance(trouble, Retryable):
                self.first = max(self.first, tried + 1)
            if part.tried != tried:
                return
            part.tried = tried + 1
        after = self.origins[tried + 1].name
        report(Progress("fetch", f"{trouble.findings[0].what}: {part.file.path} is taken from {after}"))

    def _finish(self, part: Part) -> None:
        """Its bytes are all there: compare, look inside, give it its name. What is not as
        listed is fetched again, from the next source if it came now.
        """
        while fault := part.fault():
            if not part.resumed:
                part.discard_bytes()
                self._next_origin(part, part.tried, unlisted(part.file, fault))
            part.restart()
            self._bring(part, range(part.count))
            part.advance()
        self._look_inside(part)
        part.keep()
        origin = "+".join(sorted(part.origins))
        entry = Entry(path=part.file.path, size=part.file.size, sha256=part.sha256, origin=origin)
        with self.lock:
            self.entries.append(entry)

    def _look_inside(self, part: Part) -> None:
        names = {file.path for file in self.snapshot.files}
        if fault := fault_in(part.path, part.file.path, names, self.allow):
            raise Refused(fault)

    def _count(self, size: int) -> None:
        with self.lock:
            self.moved += size

    def _say(self) -> None:
        """The rate is that of the last ten seconds."""
        now, done, size = time.monotonic(), self.there + self.moved, self.snapshot.size
        self.seen = [at for at in self.seen if now - at[0] <= RATE_SECONDS] + [(now, self.moved)]
        since, moved = self.seen[0]
        rate = (self.moved - moved) / max(now - since, 1e-6)
        left = max(0.0, size - done) / rate if rate else None
        report(Progress("fetch", "", done=min(done, size), total=size, unit="B", rate=rate, eta=left))
