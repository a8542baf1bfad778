"""Processes that outlive the run that started them: each has a folder with its lock, its
state and the launcher's word. And the locks and files by which they know each other.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from model_delivery.base import Finding, Permanent, Progress, report
from model_delivery.places.host import launcher

TAIL = 64 * 1024
GONE = (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError)


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
        with suppress(FileNotFoundError), (self.path / "lock").open("rb") as lock:
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
        before the first.
        """
        return read_json(self.path / "state.json")

    @property
    def binding(self) -> dict[str, Any]:
        """What the last process there was bound to, and its log; empty before the
        first.
        """
        return dict(self.state.get("binding", {}))

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
        one left of its session is killed first. Raises Permanent when the program cannot
        be executed.
        """
        program = run.argv[0]
        if run.session and not self.running:
            _kill(session_of(self.state))
        run.log.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(3):
            token = secrets.token_hex(8)
            error = self._launch(run, token)
            if error == launcher.BUSY:
                return
            if error:
                raise Permanent(
                    Finding(
                        "host.no-program",
                        f"{program} cannot be started",
                        error,
                        "is it installed, and may it be executed?",
                    )
                )
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
        read, write = os.pipe()
        job = {
            "lock": str(self.path / "lock"),
            "state": str(self.path / "state.json"),
            "log": str(run.log),
            "argv": run.argv,
            "cpus": run.binding.get("cpus"),
            "token": token,
            "binding": {**run.binding, "log": str(run.log)},
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
        state = self.state
        if not state:
            return
        process = identified(state)
        family = process.children(recursive=True) if process and os.getpgid(process.pid) != process.pid else []
        if process and self.alive:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
            wait([self], grace)
        _kill([*family, *session_of(state)])
        for _ in range(200):
            if not self.alive:
                self.exit_code()  # no zombie stays
                return
            wait([self], 0.05)
        raise Permanent(
            Finding(
                "host.does-not-end",
                f"process {state['pid']} does not end",
                "SIGKILL did not end it within 10 s",
                "it may hang in the kernel: see dmesg",
            )
        )


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


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def identified(state: Mapping[str, Any]) -> psutil.Process | None:
    """The process that wrote ``state``, None when it has ended (or is a zombie, or
    another has its number).
    """
    with suppress(*GONE):
        if state and launcher.start_time(state["pid"]) == state["start"]:
            process = psutil.Process(state["pid"])
            return None if process.status() == psutil.STATUS_ZOMBIE else process
    return None


def session_of(state: Mapping[str, Any]) -> Iterator[psutil.Process]:
    """Whoever is left of the session that the process of ``state`` led; nobody when its
    number has another owner by now.
    """
    if not state:
        return
    with suppress(*GONE):
        if launcher.start_time(state["pid"]) != state["start"]:
            return
    for process in psutil.process_iter():
        with suppress(*GONE, PermissionError):
            if os.getsid(process.pid) == state["pid"] and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty when there is none. Permanent when it holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise Permanent(_unreadable(path, str(error))) from None
    if not isinstance(content, dict):
        raise Permanent(_unreadable(path, "it is no object"))
    return content


def _unreadable(path: Path, why: str) -> Finding:
    fix = "put back a copy of the file; where none is kept, move the delivery's folder away and deliver again"
    return Finding("host.unreadable-file", f"{path} cannot be read", why, fix)


def tail(log: Path) -> str:
    """The last 64 KiB of a log; empty when there is none."""
    with suppress(FileNotFoundError), log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        return file.read().decode(errors="replace")
    return ""
