"""Programs that come from PyPI, in environments of their own outside the tree."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from pathlib import Path

import uv

from tests.parts.golang import cache


def environment(name: str, requirements: Path) -> Path:
    """Made once per content of ``requirements``; of two that make it the second waits."""
    folder = cache() / f"{name}-{hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]}"
    cache().mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            made = str(folder / "bin" / "python")
            for command in (
                ["venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
                ["pip", "sync", "--quiet", "--python", made, str(requirements)],
            ):
                subprocess.run([uv.find_uv_bin(), *command], check=True)
            (folder / "complete").touch()
    return folder
