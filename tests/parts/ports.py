"""A port of loopback that nobody listens on."""

from __future__ import annotations

import fcntl
import random
import socket
import tempfile
from pathlib import Path
from typing import IO

OWN = range(20_000, 28_000)  # below those that the kernel gives to whoever asks for any
_held: list[IO[str]] = []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def own_port() -> int:
    """One that stays free until it is used, though servers and clients beside ask for
    any: no other process that asks here has it while this one lives.
    """
    folder = Path(tempfile.gettempdir()) / "model-delivery-ports"
    folder.mkdir(exist_ok=True)
    for port in random.sample(OWN, len(OWN)):
        lock = (folder / str(port)).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            lock.close()
            continue
        _held.append(lock)
        return port
    raise RuntimeError(f"no port of {OWN} is free")
