"""A file while it is filled: chunks come in any order, each is on the disk before it is
noted, and the hash follows the unbroken start.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import threading
from collections.abc import Iterable
from pathlib import Path

from model_delivery.base import Trouble, sync
from model_delivery.models.verify import blob
from model_delivery.values import File

CHUNK = 8 << 20
BUFFER = 1 << 20
FICLONE = 0x40049409
FROM = "from "
IN_PLACE = "found in place"


def part_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def notes_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.chunks")


def with_parts(folder: Path, names: Iterable[str]) -> set[Path]:
    """These files of a folder, and what is there of each while it is filled."""
    return {path for name in names for path in (folder / name, part_of(folder / name), notes_of(folder / name))}


def noted(file: File, target: Path) -> tuple[set[int], set[str]]:
    """The chunks that an earlier run left on the disk, and who gave them; a note that was
    cut short, or of another version of the file, counts nothing.
    """
    try:
        first, *lines, _ = notes_of(target).read_text(errors="replace").split("\n")
        whole = part_of(target).stat().st_size == file.size and first == _title(file)
    except (FileNotFoundError, ValueError):
        return set(), set()
    notes = (re.fullmatch(r"(\d+) \1", line) for line in lines if whole)
    chunks = {int(note[1]) for note in notes if note and int(note[1]) < chunks_in(file)}
    return chunks, {line.removeprefix(FROM) for line in lines if chunks and line.startswith(FROM)}


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

    def __init__(self, file: File, target: Path) -> None:
        self.file, self.target, self.path = file, target, part_of(target)
        self.count = chunks_in(file)
        self.troubles: tuple[Trouble, ...] = ()
        self.tried = 0
        self._lock = threading.Lock()
        self._ended = self.alone = False
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_file() and target.stat().st_size == file.size:
            self._adopt()
        self.done, self.origins = noted(file, target)
        self.resumed = bool(self.done)
        self._open()

    def _adopt(self) -> None:
        """A file that is there under its own name is checked like one that was just
        filled.
        """
        numbers = "".join(f"\n{n} {n}" for n in range(self.count))
        notes_of(self.target).write_text(f"{_title(self.file)}\n{FROM}{IN_PLACE}{numbers}\n")
        self.target.replace(self.path)

    def _open(self) -> None:
        if not self.done:
            self._unlink()
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        os.ftruncate(self._fd, self.file.size)
        self._notes = os.open(
            notes_of(self.target), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_DSYNC | os.O_NOFOLLOW, 0o600
        )
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

    def take_alone(self) -> bool:
        """The server sends whole files only. True for the one stream that shall read it,
        False for those that leave it to that one.
        """
        with self._lock:
            first, self.alone = not self.alone, True
            return first

    def comes_from(self, origin: str) -> None:
        """Remember who gives bytes of it, over a restart too."""
        with self._lock:
            if origin not in self.origins:
                self.origins.add(origin)
                os.write(self._notes, f"\n{FROM}{origin}\n".encode())

    def write(self, at: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, at)
            at, view = at + written, view[written:]

    def note(self, number: int) -> None:
        """This chunk is whole: from now on it is on the disk, and no later run fetches it
        again.
        """
        os.fdatasync(self._fd)
        os.write(self._notes, b"\n%d %d\n" % (number, number))
        with self._lock:
            self.done.add(number)

    def clone(self, source: Path) -> bool:
        """Share the blocks of ``source`` where the file system can: never a hard link,
        the next edit would reach the store.
        """
        with source.open("rb") as opened:
            try:
                fcntl.ioctl(self._fd, FICLONE, opened.fileno())
            except OSError:
                return False
        os.ftruncate(self._fd, self.file.size)
        self.done = set(range(self.count))
        return True

    def advance(self) -> bool:
        """Hash on as far as there are chunks, by one thread at a time. True once, for the
        thread that came to the end.
        """
        with self._lock:
            if self._hashing:
                return False
            self._hashing = True
        while True:
            with self._lock:
                if self._frontier not in self.done:
                    self._hashing = False
                    ended, self._ended = self._ended, self._ended or self._frontier == self.count
                    return self._ended and not ended
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
        self.resumed = self._ended = self.alone = False
        self._open()

    def keep(self) -> None:
        """It gets its name, readable for whoever serves it."""
        os.fsync(self._fd)
        os.fchmod(self._fd, 0o644)
        self.close()
        self.path.replace(self.target)
        notes_of(self.target).unlink(missing_ok=True)
        sync(self.target.parent)

    def discard_bytes(self) -> None:
        """Nothing of it stays on the disk."""
        self.close()
        self._unlink()

    def _unlink(self) -> None:
        for path in (self.path, notes_of(self.target)):
            path.unlink(missing_ok=True)
