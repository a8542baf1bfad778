"""olah (PyPI): a real implementation of the Hugging Face Hub's API, offline, on git
repositories of this machine.

Its environment is made from ``requirements.txt``, outside the tree.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.parts.environment import environment
from tests.parts.hubs.git_lfs import git, pointer
from tests.parts.ports import free_port

REQUIREMENTS = Path(__file__).parent / "requirements.txt"
LFS = (".safetensors", ".bin")


def programs() -> Path:
    """The folder of olah's programs."""
    return environment("olah", REQUIREMENTS) / "bin"


def repository(mirrors: Path, files: dict[str, bytes]) -> str:
    """``org/model`` with a commit of ``files``, the large ones as LFS pointers; returns
    the commit's id.
    """
    work = mirrors / "models" / "org" / "model"
    work.mkdir(parents=True, exist_ok=True)
    if not (work / ".git").exists():
        git(work, "init", "-q", "-b", "main")
    for name, body in files.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(pointer(body) if name.endswith(LFS) else body)
    git(work, "add", "-A")
    git(work, "commit", "-qm", "files")
    return git(work, "rev-parse", "HEAD").strip()


@contextmanager
def running_olah(folder: Path) -> Iterator[str]:
    """Its address; its repositories lie in ``folder / "mirrors"``."""
    port = free_port()
    config = folder / "olah.toml"
    mirrors, repos = folder / "mirrors", folder / "repos"
    basic = f'host = "127.0.0.1"\nport = {port}\nrepos-path = "{repos}"\nmirrors-path = ["{mirrors}"]\n'
    config.write_text(f"[basic]\n{basic}[accessibility]\noffline = true\n")
    command = [str(programs() / "olah-cli"), "--config", str(config), "--log-path", str(folder / "olah-logs")]
    with (
        (folder / "olah.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, cwd=folder) as process,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(600):
                try:
                    httpx.get(f"{url}/repos", trust_env=False)
                    break
                except httpx.TransportError:
                    assert process.poll() is None, (folder / "olah.log").read_text()
                    time.sleep(0.1)
            yield url
        finally:
            process.kill()
