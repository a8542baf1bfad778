"""Runs as a script, on the standard library alone: locks its own record, then becomes the
process that the record is of.

Standard input is one JSON object: lock, state and log are paths; argv, cpus (a list or
null), token, binding and error_fd. The lock lives as long as the process (and the
children that it hands the descriptor to), whoever started it, so that "is it running?"
has one answer that survives a kill -9 of anybody. error_fd closes at exec; text on it
says why there was none.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from contextlib import suppress

BUSY = "busy"
LOCK_FD = "MODEL_DELIVERY_LOCK_FD"


def locked(path: str) -> int | None:
    """A descriptor that holds the lock, None when another process does. Retries over the
    short looks of observers.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    for _ in range(50):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
        else:
            return fd
    return None


def start_time(pid: int) -> str:
    """The kernel's start time of ``pid`` in clock ticks since boot: with the boot's id it
    tells a process from its number's next owner.
    """
    with open(f"/proc/{pid}/stat") as stat, open("/proc/sys/kernel/random/boot_id") as boot:  # noqa: PTH123
        return stat.read().rpartition(")")[2].split()[19] + "@" + boot.read().strip()


def main() -> None:
    job = json.load(sys.stdin)
    try:
        lock = locked(job["lock"])
        if lock is None:
            os.write(job["error_fd"], BUSY.encode())
            return
        state = {"pid": os.getpid(), "start": start_time(os.getpid()), "token": job["token"], "binding": job["binding"]}
        with suppress(FileNotFoundError):
            os.unlink(job["state"] + ".tmp")  # noqa: PTH108
        with open(job["state"] + ".tmp", "x") as out:  # noqa: PTH123
            json.dump(state, out)
            out.flush()
            os.fsync(out.fileno())
        os.replace(job["state"] + ".tmp", job["state"])  # noqa: PTH105
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.set_inheritable(lock, True)
        os.environ[LOCK_FD] = str(lock)
        if job["cpus"]:
            os.sched_setaffinity(0, job["cpus"])
        os.set_inheritable(job["error_fd"], False)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.execvpe(job["argv"][0], job["argv"], os.environ)  # noqa: S606
    except OSError as error:
        os.write(job["error_fd"], f"{type(error).__name__}: {error}".encode())


if __name__ == "__main__":
    main()
