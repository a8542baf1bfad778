"""Where the threads of an engine stand, by py-spy: of one that gives no token this says
why.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

SECONDS = 20.0
PROCESSES = 16


def stacks(pid: int) -> bytes:
    """Of ``pid`` and what it started; of one whose stacks cannot be had (rights, no
    Python), why.
    """
    try:
        first = psutil.Process(pid)
        every = [first, *first.children(recursive=True)][:PROCESSES]
    except psutil.Error as error:
        return f"{error}\n".encode()
    return b"\n".join(map(_dump, every))


def _dump(process: psutil.Process) -> bytes:
    spy = Path(sys.executable).with_name("py-spy")
    command = [str(spy), "dump", "--nonblocking", "--pid", str(process.pid)]
    try:
        said = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"Process {process.pid}: {error}\n".encode()
    return said.stdout or b"Process %d: %b" % (process.pid, said.stderr)
