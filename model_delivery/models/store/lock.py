"""One fetcher a folder, by a file with a heartbeat: it works where a network volume has
no locks, and a dead holder cannot keep it.

Nothing depends on it for correctness: two fetchers would write the same bytes to the same
places, and every file is hashed before it gets its name. It saves them the work.
"""

from __future__ import annotations

import itertools
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

from model_delivery.base.process import identity, lives

BEAT = 2.0
DEAD_AFTER = 15.0


@contextmanager
def alone(path: Path, waiting: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Hold the lock file ``path``; ``waiting`` hears who has it. Yields a call that says
    whether it is still ours.

    A holder is dead when its file has not changed for 15 s of the waiter's own clock, or,
    in the same process namespace of the same boot, when its process has ended.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = uuid.uuid4().hex
    _acquire(path, holder, waiting)
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(path, holder, ended), daemon=True)
    heart.start()
    try:
        yield lambda: _owned(path, holder)
    finally:
        ended.set()
        heart.join()
        if _owned(path, holder):
            path.unlink(missing_ok=True)


def held(path: Path) -> bool:
    """Is somebody alive behind this lock? Of a holder on another machine its file's time
    is believed.
    """
    seen = _holder(path)
    if not seen or (alive := lives(seen)) is False:
        return False
    return bool(alive) or time.time() - path.stat().st_mtime < DEAD_AFTER


def _acquire(path: Path, holder: str, waiting: Callable[[str], None]) -> None:
    named: str | None = None
    seen, since = _holder(path), time.monotonic()
    while seen or not _create(path, holder):
        now = _holder(path)
        if now != seen:
            seen, since = now, time.monotonic()
        elif seen and (lives(seen) is False or time.monotonic() - since > DEAD_AFTER):
            _take_over(path, seen)
            seen = _holder(path)
        elif seen:
            if named != seen["holder"]:
                named = seen["holder"]
                waiting(f"process {seen.get('pid', '?')} on {seen.get('host', 'an unknown machine')}")
            time.sleep(0.2)


def _create(path: Path, holder: str) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w") as file:
        file.write(json.dumps(_self(holder)))
    return True


def _take_over(path: Path, dead: dict[str, Any]) -> None:
    """Move the dead holder's file away; when another waiter was faster and its file was
    moved, it is put back.
    """
    grave = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with suppress(FileNotFoundError):
        path.rename(grave)
        if not _owned(grave, dead["holder"]):
            with suppress(OSError):
                os.link(grave, path)
        grave.unlink()


def _beat(path: Path, holder: str, ended: threading.Event) -> None:
    for beat in itertools.count(1):
        if ended.wait(BEAT) or not _owned(path, holder):
            return
        temporary = path.with_name(f".{path.name}.{holder}")
        with suppress(OSError):
            temporary.write_text(json.dumps(_self(holder) | {"beat": beat}))
            temporary.replace(path)


def _self(holder: str) -> dict[str, Any]:
    return {"holder": holder} | identity() | {"host": socket.gethostname(), "beat": 0}


def _holder(path: Path) -> dict[str, Any]:
    """What the lock file says; empty when there is none. One that a crash left unreadable
    has a holder whom nobody knows.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        return {"holder": "unknown"}
    return content if isinstance(content, dict) and "holder" in content else {"holder": "unknown"}


def _owned(path: Path, holder: str) -> bool:
    return _holder(path).get("holder") == holder
