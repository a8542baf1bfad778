"""Binding needs to this machine: ports, CPUs, GPUs and memory that no other engine of
ours has.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Any

import psutil

from model_delivery.base import Finding, NoRoom

LOOPBACK = IPv4Address("127.0.0.1")
LISTENS = "0A"  # in /proc/net/tcp


def bind(
    needs: Mapping[str, Any], taken: Iterable[Mapping[str, Any]], leaving: Collection[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """A port and whole CPUs and GPUs for ``needs`` (cpus, gpus: counts; memory: bytes),
    apart from what is ``taken``; what is ``leaving`` still has its memory.

    NoRoom (exit code 3) names what is missing.
    """
    others = list(taken)
    missing = []
    bound: dict[str, Any] = {
        "port": free_port({other.get("port") for other in (*others, *leaving)}),
        "memory": needs["memory"],
    }
    for what, have in (("cpus", sorted(os.sched_getaffinity(0))), ("gpus", gpus() if needs["gpus"] else [])):
        free = [n for n in have if all(n not in other.get(what, ()) for other in others)]
        if len(free) < needs[what]:
            missing.append(f"{needs[what]} {what.upper()[:3]} wanted, {len(free)} of {len(have)} free")
        bound[what] = free[: needs[what]]
    memory = psutil.virtual_memory()
    available = memory.available + sum(other.get("memory", 0) for other in leaving)
    room = min(available, memory.total - sum(other.get("memory", 0) for other in others))
    if room < needs["memory"]:
        missing.append(f"{needs['memory'] / 2**30:.1f} GiB of memory wanted, {room / 2**30:.1f} free")
    if missing:
        beside = f" beside {len(others)} running" if others else ""
        fix = "rollout.when_full: recreate stops the old release first; `deliver list` names what else runs here, and "
        fix += "`deliver down` ends it; or ask for less in serving.resources.limits (CPUs and GPUs are given whole)"
        raise NoRoom(Finding("host.no-room", f"this machine cannot hold the engine{beside}", "; ".join(missing), fix))
    return bound


def is_free(bound: Mapping[str, Any], taken: Iterable[Mapping[str, Any]]) -> bool:
    """Is all that a sleeper gave back still free? Woken onto a card that is taken, it
    would answer, and fail ever after.
    """
    others = list(taken)
    return not any(n in other.get(what, ()) for what in ("cpus", "gpus") for n in bound[what] for other in others)


def free_port(given: Collection[int | None] = ()) -> int:
    """Not one that was ``given`` to an engine, which may not listen there yet."""
    with ExitStack() as held:
        while True:
            probe = held.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            if (port := int(probe.getsockname()[1])) not in given:
                return port


def gpus() -> list[int]:
    """The NVIDIA GPUs' indexes, as the driver numbers them; empty where there are
    none.
    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    done = subprocess.run(
        [tool, "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, timeout=20, check=False
    )
    return [int(line) for line in done.stdout.split()] if done.returncode == 0 else []


def listening(host: str, port: int) -> bool:
    """Does anybody listen there?"""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


def stranger(port: int, ours: Iterable[int]) -> str:
    """Who else than the processes ``ours`` may answer at 127.0.0.1:``port``; empty:
    nobody. (The kernel deals clients out to all who share a port.)
    """
    sockets = _listeners(port)
    for pid in ours if sockets else ():
        if not sockets:
            return ""
        own = _sockets(pid)
        sockets = {name: user for name, user in sockets.items() if name not in own}
    found = (process for process in psutil.process_iter(["name"]) if sockets.keys() & _sockets(process.pid))
    named = ", ".join(f"process {process.pid} ({process.info['name']})" for process in found)
    return named or ", ".join(sorted(f"a process of user {user}" for user in set(sockets.values())))


def _listeners(port: int) -> dict[str, str]:
    """The sockets, as a process's descriptors name them, each with its user."""
    found = dict[str, str]()
    for file in ("tcp", "tcp6"):
        with suppress(OSError):
            for _, local, _, state, *rest in map(str.split, Path(f"/proc/net/{file}").read_text().splitlines()[1:]):
                address, _, number = local.rpartition(":")
                if state == LISTENS and int(number, 16) == port and _is_local(address):
                    found[f"socket:[{rest[5]}]"] = rest[3]
    return found


def _is_local(address: str) -> bool:
    words = (int(address[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(address), 8))
    ip = ip_address(b"".join(words))
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return ip.is_unspecified or ip == LOOPBACK


def _sockets(pid: int) -> set[str]:
    found = set[str]()
    with suppress(OSError):
        for number in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                found.add(str(number.readlink()))
    return found
