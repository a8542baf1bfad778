"""CPU seconds of a load generator while it loads, without what it needs to get ready."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import psutil


def watched(child: subprocess.Popen[bytes], busy: Callable[[], bool], limit: float) -> float:
    """CPU seconds of ``child`` and its children from the moment on that the server is
    ``busy``. RuntimeError after ``limit`` s: it is ended then.
    """
    before, deadline = None, time.monotonic() + limit
    seen: dict[int, float] = {}
    while child.poll() is None:
        seen |= dict(tree(child.pid))
        if before is None and busy():
            before = sum(seen.values())
        if time.monotonic() > deadline:
            for pid, _ in tree(child.pid):
                with suppress(psutil.NoSuchProcess):
                    psutil.Process(pid).kill()
            child.wait()
            raise RuntimeError(f"took longer than {limit:g} s")
        time.sleep(0.05)
    return sum(seen.values()) - (before or 0.0)


def tree(pid: int) -> Iterator[tuple[int, float]]:
    """Every process below ``pid`` and itself, with the CPU seconds that it has used."""
    with suppress(psutil.NoSuchProcess):
        top = psutil.Process(pid)
        for one in [top, *top.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                times = one.cpu_times()
                yield one.pid, times.user + times.system
