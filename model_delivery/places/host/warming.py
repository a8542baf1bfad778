"""Weights brought into the page cache while their engine still imports its libraries:
half a minute in which the disk would stand idle.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from threading import Thread

import psutil

BLOCK = 8 << 20
SHARE = 0.7  # of the memory that is available: the engine needs the rest


def warm(folder: Path, files: Iterable[tuple[str, int]]) -> Thread:
    """Read ``files`` (path in ``folder``, bytes) in their order, as many as fit. Nothing
    waits for it, and nothing depends on it.
    """
    room, chosen = psutil.virtual_memory().available * SHARE, list[Path]()
    for path, size in files:
        if (room := room - size) < 0:
            break
        chosen.append(folder / path)
    reader = Thread(target=_read, args=(chosen,), daemon=True, name="warming")
    reader.start()
    return reader


def _read(paths: Iterable[Path]) -> None:
    block = bytearray(BLOCK)
    for path in paths:
        with suppress(OSError), open(path, "rb", buffering=0) as file:  # noqa: PTH123 no buffer, and no copy of it
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while file.readinto(block):
                pass
