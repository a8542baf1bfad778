"""One fetcher a folder, by a file with a heartbeat: it works where a network volume has no locks, and a dead holder cannot keep it.

Nothing depends on it for correctness: two fetchers would write the same bytes to the same places, and every file is hashed before it
gets its name. It saves them the work.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

BEAT = 2.0
DEAD_AFTER = 15.0


@contextmanager
def alone(path: Path, waiting: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Hold the lock file ``path``; ``waiting`` hears who has it. Yields a call that says whether it is still ours.

    A holder is dead when its file has not changed for 15 s of the waiter's own clock, or, in the same process namespace of the same
    boot, when its process has ended.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mine = uuid.uuid4().hex
    _acquire(path, mine, waiting)
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(path, mine, ended), daemon=True)
    heart.start()
    try:
        yield lambda: _holder(path).get("holder") == mine
    finally:
        ended.set()
        heart.join()
        if _holder(path).get("holder") == mine:
            path.unlink(missing_ok=True)


def held(path: Path) -> bool:
    """Is somebody alive behind this lock? Takes 15 s to be sure of a holder on another machine."""
    seen = _holder(path)
    return bool(seen) and not _dead(path, seen, time.monotonic())


def _acquire(path: Path, mine: str, waiting: Callable[[str], None]) -> None:
    told: str | None = None
    seen, since = _holder(path), time.monotonic()
    while True:
        if not seen and _create(path, mine):
            return
        now = _holder(path)
        if now != seen:
            seen, since = now, time.monotonic()
            if not seen:
                continue
        if seen and (_ended(seen) or time.monotonic() - since > DEAD_AFTER):
            _take_over(path, seen)
            seen = _holder(path)
            continue
        if told != seen.get("holder"):
            told = seen.get("holder")
            waiting(f"process {seen.get('pid')} on {seen.get('host')}")
        time.sleep(0.2)


def _create(path: Path, mine: str) -> bool:
    temporary = path.with_name(f".{path.name}.{mine}")
    temporary.write_text(json.dumps(_self(mine)))
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    return True


def _take_over(path: Path, dead: dict[str, Any]) -> None:
    """Move the dead holder's file away; when another waiter was faster and its file was moved, it is put back."""
    grave = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with suppress(FileNotFoundError):
        path.rename(grave)
        if _holder(grave).get("holder") != dead["holder"]:
            with suppress(FileExistsError):
                os.link(grave, path)
        grave.unlink()


def _beat(path: Path, mine: str, ended: threading.Event) -> None:
    beat = 0
    while not ended.wait(BEAT):
        beat += 1
        if _holder(path).get("holder") != mine:
            return
        temporary = path.with_name(f".{path.name}.{mine}")
        with suppress(OSError):
            temporary.write_text(json.dumps(_self(mine) | {"beat": beat}))
            temporary.replace(path)


def _self(mine: str) -> dict[str, Any]:
    return {"holder": mine, "pid": os.getpid(), "start": _start(os.getpid()), "space": _space(), "host": socket.gethostname(), "beat": 0}


def _holder(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return said if isinstance(said, dict) and "holder" in said else {}


def _dead(path: Path, seen: dict[str, Any], since: float) -> bool:
    while not _ended(seen):
        if seen.get("space") == _space():
            return False
        if time.monotonic() - since > DEAD_AFTER:
            return True
        time.sleep(0.2)
        if _holder(path) != seen:
            return False
    return True


def _ended(seen: dict[str, Any]) -> bool:
    return seen.get("space") == _space() and _start(seen["pid"]) != seen["start"]


def _space() -> str:
    """Within it a process's number means one process: this boot, this namespace."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid")


def _start(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return ""
