"""Processes that outlive the run that started them: each has a folder with its lock, its
state and the launcher's word. And the locks and files by which they know each other.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import psutil
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model_delivery.base import Count, Finding, Permanent, Port, Progress, Retryable, private_folder, read_file, report
from model_delivery.base.durable import unfollowing
from model_delivery.base.home import disk_full
from model_delivery.base.scrubbing import PIECE, scrub
from model_delivery.places.host import binding, launcher

TAIL = 64 * 1024
GONE = (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError)
UNSEEN = (*GONE, psutil.AccessDenied, PermissionError)


@dataclass(frozen=True)
class Run:
    """What to start: its arguments and environment, where it writes, what it was bound to
    (its CPUs, where there are any), and whether in a session of its own.
    """

    argv: Sequence[str]
    environ: Mapping[str, str]
    log: Path
    binding: Mapping[str, Any]
    session: bool = True


class _Binding(BaseModel):
    model_config = ConfigDict(strict=True)

    port: Port | None = None
    cpus: list[Count] = []
    gpus: list[Count] = []
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    memory: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    log: str = ""
    since: Count = 0
    cache: dict[str, str | bool] = {}
    loader: str = ""
    lap: str = ""


class _State(BaseModel):
    model_config = ConfigDict(strict=True)

    pid: Annotated[int, Field(gt=0, lt=1 << 31)]
    start: str
    binding: _Binding


@dataclass(frozen=True)
class ProcessFolder:
    """Of one process. ``children``: what this process itself started, by folder, only for
    the exit codes; everything else is on disk and in the kernel.
    """

    path: Path
    children: dict[Path, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def alive(self) -> bool:
        """Does a process hold the folder's lock?"""
        with suppress(FileNotFoundError, IsADirectoryError), open(self.path / "lock", "rb", opener=unfollowing) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    @property
    def running(self) -> bool:
        """Is the process itself there, and not only a child that it left the lock to?"""
        return self.alive and identified(self.state) is not None

    @property
    def state(self) -> dict[str, Any]:
        """What the last process there wrote of itself: pid, start, token, binding. Empty
        before the first, and where a crash left no whole file: then nobody is known, and
        whoever holds the lock is ended before another is started.
        """
        with suppress(Permanent):
            state = read_json(self.path / "state.json") or {}
            with suppress(ValidationError):
                _State.model_validate(state)
                return state
        return {}

    @property
    def binding(self) -> dict[str, Any]:
        """What the last process there was bound to, and its log; empty before the
        first.
        """
        return dict(self.state.get("binding", {}))

    @property
    def began(self) -> float:
        """When it was started, in seconds since the epoch; 0 where nobody is known."""
        with suppress(OSError):
            return (self.path / "state.json").lstat().st_mtime
        return 0.0

    def members(self) -> Iterator[psutil.Process]:
        """Whoever holds the lock, though in a session of its own, and whoever is of the
        session that the process led. Nobody of another boot, of another user, or who only
        has a number that was ours.
        """
        state, lock = self.state, str((self.path / "lock").resolve())
        leads = identified(state) is not None
        for process in psutil.process_iter():
            with suppress(*UNSEEN, ValueError):
                pid = process.pid
                if pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if _holds(pid, lock) or (_in_session(pid, state) and (leads or self._is_ours(pid))):
                    yield process

    def stranger(self, port: int) -> str:
        """Who else may answer on its port; empty: nobody."""
        return binding.stranger(port, chain([self.state.get("pid", 0)], (process.pid for process in self.members())))

    def _is_ours(self, pid: int) -> bool:
        """Of a session whose leader is gone: does it work in the folder, or have the
        launcher's word?
        """
        if Path(f"/proc/{pid}/cwd").readlink().is_relative_to(self.path.resolve()):
            return True
        return f"{launcher.LOCK_FD}=".encode() in Path(f"/proc/{pid}/environ").read_bytes()

    def exit_code(self) -> int | None:
        """The exit code (negative: the signal), when it was this process that started it;
        else None.
        """
        child = self.children.get(self.path)
        return child.poll() if child else None

    def start(self, run: Run) -> None:
        """Start it, and return when it has become what it shall be. One that is there
        already is left alone.

        Its working folder is this one, which is there: the starter's own may be gone
        before it. A launcher that dies before its exec is started again. What an earlier
        one left is killed first. Raises Permanent when the program cannot be executed.
        """
        program = run.argv[0]
        if not self.running:
            self._end([])
        private_folder(run.log.parent)
        for _ in range(3):
            token = secrets.token_hex(8)
            error = self._launch(run, token)
            if error == launcher.BUSY and self.running:
                return
            if error == launcher.BUSY:
                continue
            if error:
                raise Permanent(_unstarted(program, error))
            if self.state.get("token") == token and self.exit_code() != -signal.SIGKILL:
                return
        raise Permanent(
            Finding(
                "host.launcher-killed",
                f"{program} could not be started",
                "its launcher was killed three times",
                "look for what kills processes here",
            )
        )

    def _launch(self, run: Run, token: str) -> str:
        since = run.log.lstat().st_size if os.path.lexists(run.log) else 0
        read, write = os.pipe()
        job = {
            "lock": str(self.path / "lock"),
            "state": str(self.path / "state.json"),
            "log": str(run.log),
            "argv": run.argv,
            "cpus": run.binding.get("cpus"),
            "token": token,
            "binding": {**run.binding, "log": str(run.log), "since": since},
            "error_fd": write,
        }
        child = self.children[self.path] = subprocess.Popen(
            [sys.executable, "-I", "-S", launcher.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=dict(run.environ),
            pass_fds=(write,),
            start_new_session=run.session,
            cwd=self.path,
        )
        os.close(write)
        if child.stdin:
            with suppress(BrokenPipeError), child.stdin as pipe:
                pipe.write(json.dumps(job).encode())
        with os.fdopen(read) as errors:
            return errors.read()

    def stop(self, grace: float) -> None:
        """SIGTERM to the process, ``grace`` seconds, then SIGKILL of whatever is left of
        its session or of its children.
        """
        process, family = identified(self.state), [*self.members()]
        if process and self.alive:
            with suppress(*UNSEEN):
                family += process.children(recursive=True)
                process.terminate()
            wait([self], grace)
        self._end(family)

    def _end(self, family: Iterable[psutil.Process]) -> None:
        """SIGKILL to ``family`` and to all members, until nobody holds the lock."""
        _kill(family)
        for _ in range(200):
            _kill(self.members())
            if not self.alive:
                self.exit_code()  # no zombie stays
                return
            wait([self], 0.05)
        pid = self.state.get("pid", "unknown")
        raise Permanent(
            Finding(
                "host.does-not-end",
                f"process {pid}, or one that it left, does not end",
                f"SIGKILL did not end within 10 s whoever holds {self.path / 'lock'}",
                "it may hang in the kernel (see dmesg), or be another user's",
            )
        )


def _unstarted(program: str, error: str) -> Finding:
    """By what its launcher says."""
    said = re.search(r"\[Errno (\d+)\] (.*)", error)
    full = disk_full(OSError(int(said[1]), said[2])) if said else None
    fix = "is it installed, and may it be executed?"
    return full or Finding("host.no-program", f"{program} cannot be started", error, fix)


def wait(folders: Iterable[ProcessFolder], timeout: float) -> None:
    """Return when one of the processes has ended, after ``timeout`` seconds at the
    latest.
    """
    watched: list[int] = []
    try:
        for process in filter(None, (identified(folder.state) for folder in folders)):
            with suppress(ProcessLookupError):
                watched.append(os.pidfd_open(process.pid))
        if watched:
            select.select(watched, [], [], timeout)
        else:
            time.sleep(min(timeout, 0.05))
    finally:
        for fd in watched:
            os.close(fd)


@contextmanager
def locked(path: Path, waiting: Progress | None = None, seconds: float = 300.0) -> Iterator[int]:
    """Hold the lock at ``path`` (made when it is missing); its descriptor. ``waiting``:
    what is reported when another holds it. Retryable when that one holds it for longer
    than ``seconds``: it may be stopped.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    with open(path, "a", opener=unfollowing) as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if waiting:
                    report(waiting)
                waiting = None
            if time.monotonic() > deadline:
                what, why = f"{path} is held by another process", f"for more than {seconds:.0f} s: it may be stopped"
                raise Retryable(Finding("host.locked", what, why, f"see who holds it: fuser {path}"))
            time.sleep(0.01)
        yield lock.fileno()


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(*UNSEEN):
            process.kill()


def identified(state: Mapping[str, Any]) -> psutil.Process | None:
    """The process that wrote ``state``, None when it has ended (or is a zombie, or
    another has its number).
    """
    with suppress(*GONE, LookupError, OSError):
        if state and launcher.start_time(state["pid"]) == state["start"]:
            process = psutil.Process(state["pid"])
            return None if process.status() == psutil.STATUS_ZOMBIE else process
    return None


def _in_session(pid: int, state: Mapping[str, Any]) -> bool:
    """Of the session that the process of ``state`` led, in the same boot and not from
    before it? Not when its number has another owner by now.
    """
    if not state or os.getsid(pid) != state["pid"]:
        return False
    ticks, _, boot = state["start"].partition("@")
    with suppress(*GONE):
        if launcher.start_time(state["pid"]) != state["start"]:
            return False
    own, _, now = launcher.start_time(pid).partition("@")
    return boot == now and int(own) >= int(ticks)


def _holds(pid: int, lock: str) -> bool:
    """Has it inherited the very lock? (Who only looks holds a shared one.)"""
    for number in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(*GONE):
            if str(number.readlink()) == lock:
                told = Path(f"/proc/{pid}/fdinfo/{number.name}").read_text()
                if re.search(r"^lock:.*FLOCK.*WRITE", told, re.MULTILINE):
                    return True
    return False


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file; None when there is none. Permanent when it holds none."""
    try:
        content = json.loads(read_file(path))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError, OSError) as error:
        raise Permanent(unreadable(path, str(error))) from None
    if not isinstance(content, dict):
        raise Permanent(unreadable(path, "it is no object"))
    return content


def unreadable(path: Path, why: str) -> Finding:
    again = path.parent.name in ("Record", "Release")
    way = "remove it" if again else "move the delivery's folder away"
    fix = f"put back a copy of the file; where none is kept, {way}, and deliver again"
    fix += ": it is made again from what runs" if again else ""
    return Finding("host.unreadable-file", f"{path} cannot be read", why, fix)


def tail(log: Path, since: int = 0) -> str:
    """The last 64 KiB of a log, of what was written ``since``; empty when there is
    none.
    """
    with suppress(OSError), open(log, "rb", opener=unfollowing) as file:
        start = file.seek(max(since, file.seek(0, os.SEEK_END) - TAIL - PIECE))
        return scrub(file.read().decode(errors="replace"))[PIECE if start > since else 0 :]
    return ""
