"""A machine's GPUs, as a driver tells of them: a library of NVML's name (``nvml/``),
which reads them from a file. Everything above the library is the real thing.
"""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).parent / "nvml" / "nvml.c"
CACHE = Path(__file__).parents[2] / ".cache" / "nvml"
GIB = 2**30
LOST, MISMATCH, HANGS, DIES = 15, 18, 1000, 1001


def build(cache: Path = CACHE) -> Path:
    """The folder of the library, compiled once per content of its source; two builders at
    once do not meet.
    """
    folder = cache / hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    library = folder / "libnvidia-ml.so.1"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / "made"
            subprocess.run(["gcc", "-w", "-shared", "-fPIC", "-o", made, SOURCE], check=True)
            made.replace(library)
    return folder


@dataclass
class Card:
    """In GiB; ``held``: by process."""

    total: float = 100
    held: dict[int, float] = field(default_factory=dict)
    unseen: float = 0
    fault: int = 0
    name: bytes = b"NVIDIA H200"
    uuid: bytes = b"GPU-c7239f65-7d9b-7008-d6a5-6f04b779a44f"


@dataclass
class Driver:
    """``folder``: where its state lies. ``environ``: with which it is found."""

    folder: Path

    @property
    def environ(self) -> dict[str, str]:
        return {"LD_LIBRARY_PATH": str(build()), "NVML_STATE": str(self.folder / "nvml-state")}

    def tells(self, *cards: Card, init: int = 0, then: bool = False) -> None:
        """``then``: once it has been asked."""
        lines = [b"init %d" % init]
        for card in cards:
            sizes = (card.total + 0.5 if card.total else 0, 0.5, card.unseen)
            words = (card.fault, *(round(size * GIB) for size in sizes))
            lines.append(f"card {' '.join(map(str, words))} ".encode() + card.uuid + b" " + card.name)
        for index, card in enumerate(cards):
            lines += (f"held {index} {pid} {round(size * GIB)}".encode() for pid, size in card.held.items())
        (self.folder / f"nvml-state{'.next' if then else ''}").write_bytes(b"\n".join(lines) + b"\n")
