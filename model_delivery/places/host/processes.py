"""Processes that outlive the run that started them: each has a folder with its lock, its
state and the launcher's word.
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
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from model_delivery.base import Finding, Permanent
from model_delivery.places.host import launcher

LAUNCHER = Path(launcher.__file__)
TAIL = 64 * 1024


@dataclass(frozen=True)
class Run:
    """What to start: its arguments, environment and CPUs, what it was bound to, where it
    writes, and whether in a session of its own.
    """

    argv: tuple[str, ...]
    environ: Mapping[str, str]
    log: Path
    binding: Mapping[str, Any]
    cpus: tuple[int, ...] = ()
    session: bool = True


class Processes:
    """Children are remembered only for their exit codes; everything else is on disk and
    in the kernel.
    """

    def __init__(self) -> None:
        self._children: dict[Path, subprocess.Popen[bytes]] = {}
        self._codes: dict[Path, int] = {}

    def alive(self, folder: Path) -> bool:
        """Does a process hold the folder's lock?"""
        try:
            with (folder / "lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def running(self, folder: Path) -> bool:
        """Is the process itself there, and not only a child that it left the lock to?"""
        return self.alive(folder) and identified(self.state(folder)) is not None

    def state(self, folder: Path) -> dict[str, Any]:
        """What the last process there wrote of itself: pid, start, token, binding. Empty
        before the first.
        """
        with suppress(FileNotFoundError):
            state: dict[str, Any] = json.loads((folder / "state.json").read_text())
            return state
        return {}

    def binding(self, folder: Path) -> dict[str, Any]:
        """What the last process there was bound to; empty before the first."""
        return dict(self.state(folder).get("binding", {}))

    def exit_code(self, folder: Path) -> int | None:
        """The exit code (negative: the signal), when it was this process that started it;
        else None.
        """
        child = self._children.get(folder)
        if child is not None and (code := child.poll()) is not None:
            self._codes[folder] = code
            del self._children[folder]
        return self._codes.get(folder)

    def start(self, folder: Path, run: Run) -> None:
        """Start it, and return when it has become what it shall be. One that is there
        already is left alone.

        Its working folder is ``folder``, which is there: the starter's own may be gone
        before it. A launcher that dies before its exec is started again. What an earlier
        one left of its session is killed first. Raises Permanent when the program cannot
        be executed.
        """
        if run.session and not self.running(folder):
            _kill(session_of(self.state(folder)))
        run.log.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(3):
            token = secrets.token_hex(8)
            error = self._launch(folder, run, token)
            if error == launcher.BUSY:
                return
            if error:
                fix = "is it installed, and may it be executed?"
                raise Permanent(Finding("host.no-program", f"{run.argv[0]} cannot be started", error, fix))
            if self.state(folder).get("token") == token and self.exit_code(folder) != -signal.SIGKILL:
                return
        what, why = f"{run.argv[0]} could not be started", "its launcher was killed three times"
        raise Permanent(Finding("host.launcher-killed", what, why, "look for what kills processes here"))

    def _launch(self, folder: Path, run: Run, token: str) -> str:
        read, write = os.pipe()
        job = {
            "lock": str(folder / "lock"),
            "state": str(folder / "state.json"),
            "log": str(run.log),
            "argv": run.argv,
            "cpus": run.cpus,
            "token": token,
            "binding": dict(run.binding),
            "error_fd": write,
        }
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", str(LAUNCHER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=dict(run.environ),
            pass_fds=(write,),
            start_new_session=run.session,
            cwd=folder,
        )
        os.close(write)
        self._codes.pop(folder, None)
        self._children[folder] = child
        if child.stdin is not None:
            with suppress(BrokenPipeError), child.stdin as pipe:
                pipe.write(json.dumps(job).encode())
        with os.fdopen(read, "rb") as errors:
            return errors.read().decode()

    def stop(self, folder: Path, grace: float) -> None:
        """SIGTERM to the process, ``grace`` seconds, then SIGKILL of whatever is left of
        its session or of its children.
        """
        state = self.state(folder)
        if not state:
            return
        process = identified(state)
        family = process.children(recursive=True) if process and os.getpgid(process.pid) != process.pid else []
        if process is not None and self.alive(folder):
            with suppress(psutil.NoSuchProcess):
                process.terminate()
            self.wait([folder], grace)
        _kill([*family, *session_of(state)])
        deadline = time.monotonic() + 10
        while self.alive(folder):
            if time.monotonic() > deadline:
                what, why = f"process {state['pid']} does not end", "SIGKILL did not end it within 10 s"
                raise Permanent(Finding("host.does-not-end", what, why, "it may hang in the kernel: see dmesg"))
            self.wait([folder], 0.05)
        self.exit_code(folder)

    def wait(self, folders: list[Path], timeout: float) -> None:
        """Return when one of the processes has ended, after ``timeout`` seconds at the
        latest.
        """
        watched: list[int] = []
        try:
            for process in filter(None, (identified(self.state(folder)) for folder in folders)):
                with suppress(ProcessLookupError):
                    watched.append(os.pidfd_open(process.pid))
            if watched:
                select.select(watched, [], [], timeout)
            else:
                time.sleep(min(timeout, 0.05))
        finally:
            for fd in watched:
                os.close(fd)


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def identified(state: Mapping[str, Any]) -> psutil.Process | None:
    """The process that wrote ``state``, None when it has ended (or is a zombie, or
    another has its number).
    """
    with suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        if state and launcher.start_time(state["pid"]) == state["start"]:
            process = psutil.Process(state["pid"])
            return None if process.status() == psutil.STATUS_ZOMBIE else process
    return None


def session_of(state: Mapping[str, Any]) -> list[psutil.Process]:
    """Whoever is left of the session that the process of ``state`` led; empty when its
    number has another owner by now.
    """
    if not state:
        return []
    pid = state["pid"]
    with suppress(FileNotFoundError, ProcessLookupError):
        if launcher.start_time(pid) != state["start"]:
            return []
    found = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess, PermissionError):
            if os.getsid(process.pid) == pid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def tail(log: Path) -> str:
    """The last 64 KiB of a log; empty when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
