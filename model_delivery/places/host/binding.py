"""Binding needs to this machine: ports, CPUs, GPUs and memory that no other engine of
ours has.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Any

import psutil

from model_delivery.base import Finding, NoRoom
from model_delivery.places.host.cards import Choice

LOOPBACK = IPv4Address("127.0.0.1")
LISTENS = "0A"  # in /proc/net/tcp


def bind(
    needs: Mapping[str, Any],
    taken: Iterable[Mapping[str, Any]],
    leaving: Collection[Mapping[str, Any]] = (),
    cards: Choice = Choice(),  # noqa: B008 - a value
) -> dict[str, Any]:
    """A port and whole CPUs for ``needs`` (cpus: a count; memory: bytes), apart from what
    is ``taken``; what is ``leaving`` still has its memory. And the ``cards`` that were
    chosen.

    NoRoom (exit code 3) names what is missing.
    """
    others = list(taken)
    missing = [cards.missing] if cards.missing else []
    bound: dict[str, Any] = {
        "port": free_port({other.get("port") for other in (*others, *leaving)}),
        "memory": needs["memory"],
    }
    have = sorted(os.sched_getaffinity(0))
    free = [n for n in have if all(n not in other.get("cpus", ()) for other in others)]
    if len(free) < needs["cpus"]:
        missing.append(f"{needs['cpus']} CPU wanted, {len(free)} of {len(have)} free")
    bound |= {"cpus": free[: needs["cpus"]], "gpus": list(cards.gpus)} | ({"share": cards.share} if cards.gpus else {})
    memory = psutil.virtual_memory()
    available = memory.available + sum(other.get("memory", 0) for other in leaving)
    room = min(available, memory.total - sum(other.get("memory", 0) for other in others))
    if room < needs["memory"]:
        missing.append(f"{needs['memory'] / 2**30:.1f} GiB of memory wanted, {room / 2**30:.1f} free")
    if missing:
        beside = f" beside {len(others)} running" if others else ""
        fix = "rollout.when_full: recreate stops the old release first; `deliver list` names what else runs here, and "
        fix += "`deliver down` ends it; or ask for less in serving.resources.limits (CPUs are given whole)"
        fix += ", or by --gpu-memory-utilization" if cards.missing else ""
        what, why = f"this machine cannot hold the engine{beside}", "; ".join(missing)
        raise NoRoom(Finding("host.no-room", what, why, fix, cards.seen))
    return bound


def is_free(bound: Mapping[str, Any], taken: Iterable[Mapping[str, Any]]) -> bool:
    """Are the CPUs that a sleeper gave back still free?"""
    others = list(taken)
    return not any(n in other.get("cpus", ()) for n in bound["cpus"] for other in others)


def free_port(given: Collection[int | None] = ()) -> int:
    """Not one that was ``given`` to an engine, which may not listen there yet."""
    with ExitStack() as held:
        while True:
            probe = held.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            if (port := int(probe.getsockname()[1])) not in given:
                return port


def listening(host: str, port: int) -> bool:
    """Does anybody listen there?"""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


def stranger(port: int, ours: Iterable[int]) -> str:
    """Who else than the processes ``ours`` may answer at 127.0.0.1:``port``; empty:
    nobody. (The kernel deals clients out to all who share a port.)
    """
    sockets, known = _listeners(port), iter(ours)
    while sockets and (pid := next(known, None)) is not None:
        own = _sockets(pid)
        sockets = {name: user for name, user in sockets.items() if name not in own}
    if not sockets:
        return ""
    found = (process for process in psutil.process_iter(["name"]) if sockets.keys() & _sockets(process.pid))
    named = ", ".join(f"process {process.pid} ({process.info['name']})" for process in found)
    return named or ", ".join(sorted(f"a process of user {user}" for user in set(sockets.values())))


def _listeners(port: int) -> dict[str, str]:
    """The sockets, as a process's descriptors name them, each with its user. Linux tells
    of those that listen before all others, of which there may be many thousands.
    """
    found = dict[str, str]()
    for file in ("tcp", "tcp6"):
        with suppress(OSError), Path(f"/proc/net/{file}").open(encoding="ascii") as lines:
            next(lines, None)
            for _, local, _, state, *rest in map(str.split, lines):
                if state != LISTENS:
                    break
                address, _, number = local.rpartition(":")
                if int(number, 16) == port and _is_local(address):
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
