"""One at a time, among all processes of this host."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model_delivery.base import Progress, report


@contextmanager
def locked(path: Path, waiting: Progress | None = None) -> Iterator[int]:
    """Hold the lock at ``path`` (made when it is missing); its descriptor. ``waiting``:
    what is reported when another holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting:
                report(waiting)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()
