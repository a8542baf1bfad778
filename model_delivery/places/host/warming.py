"""Weights brought into the page cache while their engine still imports its libraries,
half a minute in which the disk would stand idle; and out of it, where a start is timed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from threading import Thread

import psutil

BLOCK = 8 << 20
SHARE = 0.7  # of the memory that is available: the engine needs the rest


def warm(folder: Path, files: Iterable[tuple[str, int]], goes_on: Callable[[], bool] = lambda: True) -> Thread:
    """Read ``files`` (path in ``folder``, bytes) in their order, as many as fit, while it
    ``goes_on``. Nothing waits for it, and nothing depends on it.
    """
    room, chosen = psutil.virtual_memory().available * SHARE, list[Path]()
    for path, size in files:
        if (room := room - size) < 0:
            break
        chosen.append(folder / path)
    reader = Thread(target=_read, args=(chosen, goes_on), daemon=True, name="warming")
    reader.start()
    return reader


def cool(folder: Path, files: Iterable[str]) -> None:
    """Out of the page cache, as far as nobody has them mapped."""
    for name in files:
        with suppress(OSError), open(folder / name, "rb", buffering=0) as file:  # noqa: PTH123 as below
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read(paths: Iterable[Path], goes_on: Callable[[], bool]) -> None:
    block = bytearray(BLOCK)
    for path in paths:
        with suppress(OSError), open(path, "rb", buffering=0) as file:  # noqa: PTH123 no buffer, and no copy of it
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while goes_on() and file.readinto(block):
                pass
