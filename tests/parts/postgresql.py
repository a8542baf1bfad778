"""Debian's PostgreSQL, on a free port of loopback, without a password."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.parts.cluster.waiting import until
from tests.parts.ports import own_port


def programs() -> Path | None:
    """Their folder, None where it is not installed (``scripts/test`` installs it where it
    may).
    """
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


@dataclass(frozen=True)
class PostgreSQL:
    bin: Path
    port: int

    @property
    def url(self) -> str:
        """For Prefect's setting."""
        return f"postgresql+asyncpg://prefect@127.0.0.1:{self.port}/postgres"

    def asked(self, program: str, *words: str) -> subprocess.CompletedProcess[bytes]:
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "prefect"]
        return subprocess.run([str(self.bin / program), *where, *words], check=False, capture_output=True)

    def dump(self) -> bytes:
        """Every column of every row of every table."""
        done = self.asked("pg_dump", "--inserts", "postgres")
        done.check_returncode()
        return done.stdout


@contextmanager
def running_postgresql(folder: Path) -> Iterator[PostgreSQL]:
    """For the length of the block; it refuses to run as root, and is Debian's user
    postgres then. ``folder`` is where ``programs`` lie.
    """
    user = "postgres" if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory() as home:
        if user:
            shutil.chown(home, user)
        data, server = str(Path(home, "data")), PostgreSQL(folder, own_port())
        make = ["-D", data, "-U", "prefect", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
        subprocess.run([str(folder / "initdb"), *make], user=user, cwd=home, check=True, capture_output=True)
        run = ["-D", data, "-p", str(server.port), "-h", "127.0.0.1", "-k", home, "-c", "fsync=off"]
        with Path(home, "log").open("wb") as log:
            process = subprocess.Popen([str(folder / "postgres"), *run], user=user, cwd=home, stdout=log, stderr=log)
        try:
            until(lambda: server.asked("pg_isready").returncode == 0, 30, Path(home, "log").read_text)
            yield server
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)
