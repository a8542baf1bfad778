"""A fetcher's folder inside the model's, ``.model-delivery/HOLDER``: the lock, and the
only place that it writes to.

Whoever takes over renames it. From then on nothing is where the former holder looks for
it: what it has not yet brought in by a rename never comes, and it moves nothing out. To
files that it has open it may still write; unless it has surely ended they are copied. A
rename works where a network volume has no locks.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from model_delivery.base import Finding, Refused, read_file, replace_file, sync
from model_delivery.base.process import identity, lives, space
from model_delivery.models.manifest import MANIFEST, WORK
from model_delivery.models.store.part import NOTES, PART, renew
from model_delivery.values import Snapshot

BEAT = 2.0
DEAD_AFTER = 15.0
FREE, DOUBTFUL, TRASH, SCRATCH, LISTED = "free", "doubtful", "trash", "scratch", "listed.json"
WRITTEN = re.compile(
    rf"{re.escape(WORK)}(?:\.\w{{32}})?/(?:\w{{32}}|{FREE})/(?:[^/]+\.(?:part|chunks)|\w{{32}}\.(?:json|new)|{DOUBTFUL}"
    rf"|{re.escape(LISTED)}|{re.escape(MANIFEST)}\.new|(?:{TRASH}|{SCRATCH})/.*)",
    re.DOTALL,
)


@contextmanager
def opened(folder: Path, own: int) -> Iterator[Path]:
    """``folder``, made where it is missing, under a name that means it whatever others
    put in its place.

    Its last ``own`` parts are the store's: Refused where one of them is a link.
    """
    base, parts = Path(*folder.parts[: len(folder.parts) - own]), folder.parts[len(folder.parts) - own :]
    base.mkdir(parents=True, exist_ok=True)
    here = os.open(base, os.O_PATH | os.O_DIRECTORY)
    try:
        for part in parts:
            inner = _inside(here, part, folder)
            os.close(here)
            here = inner
        yield Path(f"/proc/{os.getpid()}/fd/{here}")
    finally:
        os.close(here)


def _inside(here: int, part: str, folder: Path) -> int:
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
    try:
        with suppress(FileNotFoundError):
            return os.open(part, flags, dir_fd=here)
        with suppress(FileExistsError):
            os.mkdir(part, dir_fd=here)
        return os.open(part, flags, dir_fd=here)
    except NotADirectoryError:
        why, fix = "it could lead anywhere, and what lies there would go", "remove it, or name another storage.path"
        raise Refused(Finding("store.link", f"{part} in {folder} is a link or a file", why, fix)) from None


@dataclass(frozen=True)
class Workspace:
    """``folder`` is the model's. Nothing is written or moved but from or to ``path``;
    while it is ``busy`` threads of ours write there.
    """

    folder: Path
    holder: str = field(default_factory=lambda: uuid.uuid4().hex)
    busy: threading.Event = field(default_factory=threading.Event)

    @property
    def path(self) -> Path:
        return self.folder / WORK / self.holder

    @property
    def scratch(self) -> Path:
        """What a source must unpack before it can be copied."""
        return self.path / SCRATCH

    def begin(self, snapshot: Snapshot) -> None:
        """So that a gc knows what a fetch that never ended has brought."""
        replace_file(self.path / LISTED, snapshot.model_dump_json(), 0o644)

    def ours(self) -> bool:
        return self.path.is_dir()

    def discard(self, path: Path) -> None:
        """Away from the model, whatever it is."""
        (self.path / TRASH).mkdir(exist_ok=True)
        path.rename(self.path / TRASH / uuid.uuid4().hex)

    def keep(self, stems: set[str]) -> None:
        """Of the files that were begun these; what was discarded goes for good."""
        for path in self.path.iterdir():
            if path.suffix in (PART, NOTES) and path.stem not in stems:
                _remove(path)
        shutil.rmtree(self.path / TRASH, ignore_errors=True)


@contextmanager
def alone(folder: Path, waiting: Callable[[str], None]) -> Iterator[Workspace]:
    """The only workspace in ``folder``, with what is there of its files; ``waiting``
    hears who has it.

    A holder is dead when it has given no sign for 15 s of the waiter's own clock, or, in
    the same process namespace of the same boot, when its process has ended.
    """
    work = Workspace(folder)
    _acquire(work, waiting)
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(work, ended), daemon=True)
    heart.start()
    try:
        _tidy(work)
        yield work
    finally:
        ended.set()
        heart.join()
        _leave(work)


def begun(folder: Path) -> dict[str, int]:
    """The names and sizes of what a fetch brings that has not ended."""
    listed = dict[str, int]()
    for file in folder.glob(f"{WORK}/*/{LISTED}"):
        with suppress(OSError, ValidationError):
            listed |= {each.path: each.size for each in Snapshot.model_validate_json(read_file(file)).files}
    return listed


def held(folder: Path) -> bool:
    """Is somebody alive at work there? Of one on another machine its file's time is
    believed.
    """
    seen = _seen(folder)
    if seen is None or seen.name == FREE or seen.ended:
        return False
    return seen.facts.get("space") == space() or time.time() - seen.beat / 1e9 < DEAD_AFTER


@dataclass(frozen=True)
class _Holder:
    """Who works in a folder, as its file says; ``beat``: that file's time, in ns."""

    name: str
    beat: int
    facts: dict[str, Any]

    @property
    def ended(self) -> bool:
        return lives(self.facts) is False

    def __str__(self) -> str:
        host = str(self.facts.get("host"))
        known = isinstance(self.facts.get("pid"), int) and re.fullmatch(r"[\w.-]{1,255}", host)
        return f"process {self.facts['pid']} on {host}" if known else "a process on an unknown machine"


def _seen(folder: Path) -> _Holder | None:
    try:
        names = sorted(entry.name for entry in os.scandir(folder / WORK) if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return None
    file = folder / WORK / names[0] / _sign_of(names[0]) if names else folder / WORK
    beat: int = 0
    facts: Any = None
    with suppress(OSError, ValueError, RecursionError):
        beat, facts = file.lstat().st_mtime_ns, json.loads(read_file(file, 1 << 16))
    return _Holder(names[0] if names else "", beat, facts if isinstance(facts, dict) else {})


def _acquire(work: Workspace, waiting: Callable[[str], None]) -> None:
    seen: _Holder | None = None
    since, named = time.monotonic(), ""
    while not _enter(work):
        now = _seen(work.folder)
        if now != seen:
            seen, since = now, time.monotonic()
        if now is None:
            continue
        clean = now.name == FREE or now.ended
        if clean or time.monotonic() - since > DEAD_AFTER:
            if _take_over(work, now.name, clean=clean):
                break
            continue
        if named != now.name:
            named = now.name
            waiting(str(now))
        time.sleep(0.2)
    sync(work.path.parent)
    sync(work.folder)


def _enter(work: Workspace) -> bool:
    """Where nobody works: whole at once, by a rename, so that one of many succeeds."""
    place = work.folder / WORK
    if place.is_symlink() or place.is_file():
        place.unlink()
    elif place.is_dir() and any(place.iterdir()):
        return False
    first = work.folder / f"{WORK}.{work.holder}"
    try:
        (first / work.holder).mkdir(parents=True)
        _write_sign(first / work.holder, work.holder)
        first.rename(place)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    finally:
        shutil.rmtree(first, ignore_errors=True)
    return True


def _take_over(work: Workspace, name: str, *, clean: bool) -> bool:
    """False where another waiter was faster, or it is no holder's."""
    if not name:
        shutil.rmtree(work.folder / WORK)
        return False
    old = work.folder / WORK / name
    with suppress(FileNotFoundError):
        _write_sign(old, work.holder)
        if not clean:
            (old / DOUBTFUL).touch()
        old.rename(work.path)
        return True
    return False


def _tidy(work: Workspace) -> None:
    """Of what the former holder left, the files that it began stay; as copies where it
    may still write to them.
    """
    for path in work.path.iterdir():
        if path.suffix == PART and not path.is_symlink() and (work.path / DOUBTFUL).exists():
            renew(path)
        elif path.suffix not in (PART, NOTES) and path.name not in (DOUBTFUL, LISTED, _sign_of(work.holder)):
            _remove(path)
    (work.path / DOUBTFUL).unlink(missing_ok=True)


def _leave(work: Workspace) -> None:
    """What was begun stays for whoever comes next."""
    if work.busy.is_set():  # interrupted twice: the next one will see this process end
        return
    with suppress(OSError):
        if (work.folder / MANIFEST).exists():
            shutil.rmtree(work.path)
            work.path.parent.rmdir()
        else:
            work.path.rename(work.folder / WORK / FREE)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _beat(work: Workspace, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with suppress(OSError):
            os.utime(work.path / _sign_of(work.holder))


def _sign_of(holder: str) -> str:
    return f"{holder}.json"


def _write_sign(folder: Path, holder: str) -> None:
    facts = {**identity(), "host": socket.gethostname()}
    with (folder / _sign_of(holder)).open("x") as file:
        file.write(json.dumps(facts))
