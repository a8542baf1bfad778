"""A Prefect server and a process worker of our own, on free ports of this machine, with
their state in a private folder.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

POOL = "local"
AUTH = "PREFECT_SERVER_API_AUTH_STRING"
PREFECT = str(Path(sys.executable).with_name("prefect"))


@dataclass(frozen=True)
class Server:
    """``url`` is the API's, ``ui`` the page's; ``env`` is what a process needs that talks
    to it.
    """

    url: str
    ui: str
    home: Path
    env: Mapping[str, str]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def private_env(home: Path) -> dict[str, str]:
    """This process's environment without any Prefect setting of its user, with Prefect's
    state under ``home`` and nothing sent anywhere.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return clean | {"PREFECT_HOME": str(home), "DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}


def start(argv: list[str], env: Mapping[str, str], log: Path) -> psutil.Popen:
    """Start ``argv`` in a session of its own (a Ctrl-C at the terminal is ours to
    handle), its output in ``log``.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        return psutil.Popen(
            argv, env=dict(env), stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )


def stop(process: psutil.Process, grace: float = 20.0) -> None:
    """End the processes of its session (a worker's runs; not the engines, which have
    sessions of their own), then itself.

    SIGTERM, ``grace`` seconds, SIGKILL; returns when they are gone.
    """
    if not process.is_running():
        return
    members = [child for child in process.children(recursive=True) if _session(child) == process.pid]
    for group in (members, [process]):
        for one in group:
            with suppress(psutil.NoSuchProcess):
                one.terminate()
        for one in psutil.wait_procs(group, grace)[1]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(group, grace)


def _session(process: psutil.Process) -> int:
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return 0


def start_server(
    home: Path, host: str = "127.0.0.1", *, port: int = 0, settings: Mapping[str, str] | None = None
) -> tuple[psutil.Popen, Server]:
    """Begin to start a server on this machine's address ``host``; ``wait_for_server``
    says when it answers. ``settings``: more of its own; its clients are told how to
    authenticate.
    """
    home.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    base = f"http://{host}:{port}"
    more, private = settings or {}, private_env(home)
    ui = {"PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false", "PREFECT_SERVER_UI_API_URL": f"{base}/api"}
    env = private | dict(more) | ui
    process = start([PREFECT, "server", "start", "--host", host, "--port", str(port)], env, home / "server.log")
    login = {"PREFECT_API_AUTH_STRING": more[AUTH]} if AUTH in more else {}
    return process, Server(f"{base}/api", base, home, private | login | {"PREFECT_API_URL": f"{base}/api"})


def wait_for_server(process: psutil.Popen, server: Server, timeout: float = 120.0) -> None:
    """Return when it answers; RuntimeError with the end of its log when it ended, or does
    not answer within ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    with httpx.Client(trust_env=False, timeout=5) as client:
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if client.get(f"{server.url}/health").is_success:
                    return
            except httpx.TransportError:
                time.sleep(0.2)
    log = (server.home / "server.log").read_text(errors="replace").splitlines()[-20:]
    raise RuntimeError("the Prefect server did not start:\n" + "\n".join(log))


def start_worker(
    server: Server,
    extra_env: Mapping[str, str] | None = None,
    *,
    pool: str = POOL,
    prefect: Sequence[str] = (PREFECT,),
) -> psutil.Popen:
    """Begin to start a process worker of ``pool`` (which it makes where it is
    missing).
    """
    env = {**server.env, "PREFECT_WORKER_QUERY_SECONDS": "1", **(extra_env or {})}
    command = [*prefect, "worker", "start", "--pool", pool, "--type", "process", "--name", "here"]
    return start(command, env, server.home / "worker.log")


@contextmanager
def running_server(home: Path, host: str = "127.0.0.1") -> Iterator[Server]:
    """A server that answers, for the length of the block."""
    process, server = start_server(home, host)
    try:
        wait_for_server(process, server)
        yield server
    finally:
        stop(process)


@contextmanager
def running_worker(server: Server, extra_env: Mapping[str, str] | None = None, **more: Any) -> Iterator[int]:
    """A worker, for the length of the block: stop it before its server.

    Yields its process id.
    """
    process = start_worker(server, extra_env, **more)
    try:
        yield process.pid
    finally:
        stop(process)
