"""Which process a number means: it says so only within a boot and a process namespace."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def space() -> str:
    """Within it a process's number means one process: this boot, this namespace."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + str(Path("/proc/self/ns/pid").readlink())


def started(pid: int) -> str:
    """The kernel's start time of ``pid`` in clock ticks; empty when it has ended."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # no such process, or no such number
        return ""
    return "" if state == "Z" else rest[18]


def identity() -> dict[str, Any]:
    """By which others know this process: ``lives`` reads it."""
    return {"pid": os.getpid(), "start": started(os.getpid()), "space": space()}


def lives(who: Mapping[str, Any]) -> bool | None:
    """Does the process with that ``identity`` live? None: nobody can say from here."""
    if who.get("space") != space() or not isinstance(who.get("pid"), int):
        return None
    return started(who["pid"]) == who.get("start")
