"""Files that a crash at any moment leaves old or new, whole."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path


def replace_file(path: Path, content: str | bytes, mode: int = 0o600, temporary: Path | None = None) -> None:
    """Write ``content`` so that a reader, and a crash at any moment, sees the old or the
    new file whole; only its owner may read it by default.

    ``temporary``: where it is written before it gets its name; by default beside.
    """
    private_folder(path.parent)
    temporary = temporary or path.with_name(f".{path.name}.{os.getpid()}.new")
    with suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def unwaiting(name: str, flags: int) -> int:
    """Opens a file; a pipe's other end is not waited for."""
    return os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY, 0o600)


def unfollowing(name: str, flags: int) -> int:
    """Nor is a link followed: of a file of ours."""
    return unwaiting(name, flags | os.O_NOFOLLOW)


def read_file(path: Path, most: int = 1 << 26, *, links: bool = False) -> bytes:
    """A regular file, whole: a pipe or a device may never end, and is an OSError, as more
    than ``most`` bytes are. ``links`` are followed only where a user has named the file.
    """
    with open(path, "rb", opener=unwaiting if links else unfollowing) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        content = file.read(most + 1)
    if len(content or b"") > most:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return content or b""


def private_folder(path: Path) -> None:
    """Make the folder, and those above it that are missing, for its owner alone."""
    for folder in (*reversed(path.parents), path):
        if not folder.is_dir():
            folder.mkdir(mode=0o700, exist_ok=True)


def sync(path: Path) -> None:
    """What was written to this file, or renamed in this folder, survives a power cut from
    here on.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
