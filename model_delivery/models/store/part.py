"""A file while it is filled: chunks come in any order, each is on the disk before it is
noted, and the hash follows the unbroken start.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from model_delivery.base import Finding, Permanent, Trouble, read_file, sync
from model_delivery.base.home import FULL
from model_delivery.models.verify import blob
from model_delivery.values import File

CHUNK = 8 << 20
BUFFER = 1 << 20
FICLONE = 0x40049409
FROM = "from "
IN_PLACE = "found in place"


PART, NOTES = ".part", ".chunks"


def part_of(file: File, work: Path) -> Path:
    """What is there of it while it is filled; its own name may be too long for more."""
    return work / (hashlib.sha256(file.path.encode()).hexdigest()[:32] + PART)


def noted(file: File, part: Path) -> tuple[set[int], set[str]]:
    """The chunks that an earlier run left on the disk, and who gave them; a note that was
    cut short, or of another version of the file, counts nothing.
    """
    try:
        first, *lines, _ = read_file(part.with_suffix(NOTES)).decode(errors="replace").split("\n")
        whole = part.lstat().st_size == file.size and first == _title(file)
    except (OSError, ValueError):
        return set(), set()
    chunks = {number for number in _numbers(lines) if whole and number < chunks_in(file)}
    return chunks, {line.removeprefix(FROM) for line in lines if chunks and line.startswith(FROM)}


def _numbers(lines: Iterable[str]) -> Iterator[int]:
    return (int(note[1]) for line in lines if (note := re.fullmatch(r"(\d{1,9}) \1", line)))


def renew(part: Path) -> None:
    """The noted chunks and their notes in files that nobody else has open."""
    notes = part.with_suffix(NOTES)
    lines = read_file(notes) if notes.exists() else b""
    fresh = [path.with_suffix(".new") for path in (part, notes)]
    with part.open("rb") as old, fresh[0].open("wb") as new:
        new.truncate(os.fstat(old.fileno()).st_size)
        for number in sorted(_numbers(lines.decode(errors="replace").split("\n"))):
            old.seek(number * CHUNK)
            new.seek(number * CHUNK)
            new.write(old.read(CHUNK))
        new.flush()
        os.fsync(new.fileno())
    notes.unlink(missing_ok=True)
    fresh[0].replace(part)
    fresh[1].write_bytes(lines)
    fresh[1].replace(notes)


@contextmanager
def written(what: str) -> Iterator[None]:
    """An OSError inside is the disk's."""
    try:
        yield
    except OSError as error:
        first = "make room" if error.errno in FULL else "let this user write there, on a disk that is sound"
        why, fix = error.strerror or type(error).__name__, f"{first}, then run again: it goes on where it was"
        raise Permanent(Finding("store.not-writable", f"{what} cannot be written", why, fix)) from error


def chunks_in(file: File) -> int:
    return -(-file.size // CHUNK)


def chunk_size(file: File, number: int) -> int:
    """In bytes; the last one may be shorter."""
    return min(CHUNK, file.size - number * CHUNK)


def size_of(file: File, numbers: Iterable[int]) -> int:
    """What these chunks have together, in bytes."""
    return sum(chunk_size(file, number) for number in numbers)


def _title(file: File) -> str:
    return f"{file.size} {file.sha256 or file.git_sha1} {CHUNK}"


class Part:
    """``resumed`` says whether an earlier run's chunks are among ``done``. Safe for
    threads that write different chunks.
    """

    def __init__(self, file: File, target: Path, work: Path) -> None:
        self.file, self.target, self.path = file, target, part_of(file, work)
        self.notes = self.path.with_suffix(NOTES)
        self.count = chunks_in(file)
        self.troubles: tuple[Trouble, ...] = ()
        self.tried = 0
        self._lock = threading.Condition()
        self._streams, self._over, self._alone = 0, False, 0
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_file() and target.stat().st_size == file.size:
            self._adopt()
        self.done, self.origins = noted(file, self.path)
        self.resumed = bool(self.done)
        self._open()

    def _adopt(self) -> None:
        """A file that is there under its own name is checked like one that was just
        filled.
        """
        numbers = "".join(f"\n{n} {n}" for n in range(self.count))
        self.notes.unlink(missing_ok=True)
        self.notes.write_text(f"{_title(self.file)}\n{FROM}{IN_PLACE}{numbers}\n")
        self.target.replace(self.path)

    def _open(self) -> None:
        if not self.done:
            self._unlink()
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        os.ftruncate(self._fd, self.file.size)
        self._notes = os.open(self.notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_DSYNC | os.O_NOFOLLOW, 0o600)
        if not self.done:
            os.write(self._notes, _title(self.file).encode() + b"\n")
        sync(self.path.parent)
        self._sha256 = hashlib.sha256()
        self._blob = None if self.file.sha256 else blob(self.file.size)
        self._frontier, self._hashing = 0, False

    def close(self) -> None:
        """Once more is no harm."""
        for descriptor in {self._fd, self._notes} - {-1}:
            os.close(descriptor)
        self._fd = self._notes = -1

    def join(self) -> bool:
        """A stream begins with it; False where it is over, or one stream brings all of
        it.
        """
        with self._lock:
            joins = not self._over and not self._alone
            self._streams += joins
            return joins

    def leave(self) -> bool:
        """True for the last one of a file whose bytes are all there: nobody else has its
        descriptors.
        """
        with self._lock:
            self._streams -= 1
            self._lock.notify_all()
            self._over = self._over or (self._streams == 0 and self._frontier == self.count)
            return self._over

    def take_alone(self, stop: threading.Event) -> bool:
        """The server sends whole files only. True for the one stream that brings it, once
        the others have left; False for those.
        """
        with self._lock:
            self._alone = self._alone or threading.get_ident()
            while self.mine and self._streams > 1 and not stop.is_set():
                self._lock.wait(0.1)
            return self.mine

    @property
    def mine(self) -> bool:
        """Does this stream bring all of it?"""
        return self._alone == threading.get_ident()

    @property
    def others(self) -> bool:
        """Does another stream bring all of it?"""
        return self._alone not in (0, threading.get_ident())

    def missing(self, row: range) -> list[range]:
        """What of ``row`` is not there, or of the whole file where this stream brings all
        of it: unbroken runs.
        """
        runs: list[range] = []
        for number in (n for n in (range(self.count) if self.mine else row) if n not in self.done):
            joined = bool(runs) and runs[-1].stop == number
            runs.append(range(runs.pop().start if joined else number, number + 1))
        return runs

    def comes_from(self, origin: str) -> None:
        """Remember who gives bytes of it, over a restart too."""
        with self._lock:
            if origin not in self.origins:
                self.origins.add(origin)
                os.write(self._notes, f"\n{FROM}{origin}\n".encode())

    def write(self, at: int, data: bytes) -> None:
        """A chunk that is noted stays as it is: it may be hashed already."""
        view = memoryview(data)
        while view:
            number, within = divmod(at, CHUNK)
            piece = view[: chunk_size(self.file, number) - within]
            if number not in self.done:
                self._write(at, piece)
                if within + len(piece) == chunk_size(self.file, number):
                    self._note(number)
            at, view = at + len(piece), view[len(piece) :]

    def _write(self, at: int, view: memoryview) -> None:
        while view:
            written = os.pwrite(self._fd, view, at)
            at, view = at + written, view[written:]

    def _note(self, number: int) -> None:
        """This chunk is whole: from now on it is on the disk, and no later run fetches it
        again.
        """
        os.fdatasync(self._fd)
        os.write(self._notes, b"\n%d %d\n" % (number, number))
        with self._lock:
            self.done.add(number)

    def clone(self, source: BinaryIO) -> bool:
        """Share the blocks of ``source`` where the file system can: never a hard link,
        the next edit would reach the store.
        """
        try:
            fcntl.ioctl(self._fd, FICLONE, source.fileno())
        except OSError:
            return False
        os.ftruncate(self._fd, self.file.size)
        self.done = set(range(self.count))
        return True

    def advance(self) -> None:
        """Hash on as far as there are chunks, by one thread at a time."""
        with self._lock:
            if self._hashing:
                return
            self._hashing = True
        while True:
            with self._lock:
                if self._frontier not in self.done:
                    self._hashing = False
                    return
                number = self._frontier
            self._hash(number)
            with self._lock:
                self._frontier += 1

    def _hash(self, number: int) -> None:
        at, end = number * CHUNK, number * CHUNK + chunk_size(self.file, number)
        while at < end:
            data = os.pread(self._fd, min(BUFFER, end - at), at)
            self._sha256.update(data)
            if self._blob is not None:
                self._blob.update(data)
            at += len(data)

    @property
    def sha256(self) -> str:
        """Of the whole file, once ``advance`` came to the end."""
        return self._sha256.hexdigest()

    def fault(self) -> str:
        """How the bytes differ from what was listed; empty when they do not."""
        if self.file.sha256 is not None and self.sha256 != self.file.sha256:
            return f"its sha256 is {self.sha256}, the list says {self.file.sha256}"
        if self._blob is not None and self._blob.hexdigest() != self.file.git_sha1:
            return f"its git hash is {self._blob.hexdigest()}, the list says {self.file.git_sha1}"
        return ""

    def restart(self) -> None:
        """Throw away what is there, and begin again."""
        self.discard_bytes()
        self.done, self.origins = set(), set()
        self.resumed, self._alone = False, threading.get_ident()
        self._open()

    def keep(self) -> None:
        """It gets its name, readable for whoever serves it."""
        os.fsync(self._fd)
        os.fchmod(self._fd, 0o644)
        self.close()
        self.path.replace(self.target)
        self.notes.unlink(missing_ok=True)
        sync(self.target.parent)

    def discard_bytes(self) -> None:
        """Nothing of it stays on the disk."""
        self.close()
        self._unlink()

    def _unlink(self) -> None:
        for path in (self.path, self.notes):
            path.unlink(missing_ok=True)
