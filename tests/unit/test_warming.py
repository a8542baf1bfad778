"""Weights are in the page cache before an engine asks for them, as many as fit."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from model_delivery.places.host.warming import warm

SIZE = 20 << 20


def cold(path: Path) -> Path:
    path.write_bytes(os.urandom(SIZE))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert cached(path) == 0, f"{path.parent} is in memory itself: this test needs a disk"
    return path


def cached(path: Path) -> int:
    """Bytes of it that are in the page cache."""
    said = subprocess.run(["fincore", "-nbo", "res", path], capture_output=True, text=True, check=True).stdout
    return int(said)


def test_what_fits_is_read_ahead_and_nothing_depends_on_it(tmp_path: Path) -> None:
    first, second = cold(tmp_path / "a.safetensors"), cold(tmp_path / "b.safetensors")
    gone, huge = ("gone.safetensors", 1), (second.name, 1 << 60)
    warm(tmp_path, [(first.name, SIZE), gone, huge]).join(30)
    assert (cached(first), cached(second)) == (SIZE, 0)
