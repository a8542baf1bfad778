"""Long-running programs of one state folder: started, ended by process id, found again
after a test that was killed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import psutil

from tests.parts.cluster.waiting import until

ROOT = Path(__file__).parents[3]


class Programs:
    """``log/NAME`` holds a program's output, ``pids/NAME`` its process id and start
    time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: dict[str, psutil.Popen] = {}
        for name in ("log", "pids"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def start(self, name: str, command: Sequence[str | Path], environ: Mapping[str, str] | None = None) -> psutil.Popen:
        """Start it in the state folder, in a session of its own; it does not outlive this
        process, even one that is killed.
        """
        with (self.folder / "log" / name).open("ab") as out:
            process = psutil.Popen(
                ["setpriv", "--pdeathsig", "KILL", *map(str, command)], cwd=self.folder, env=None if environ is None else dict(environ),
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        (self.folder / "pids" / name).write_text(json.dumps([process.pid, process.create_time()]))
        self._running[name] = process
        return process

    @property
    def running(self) -> list[psutil.Popen]:
        """In the order of their start."""
        return list(self._running.values())

    def wait_for(self, name: str, answers: Callable[[], bool], timeout: float = 60.0) -> None:
        """Return when ``answers``; RuntimeError with the end of the program's log when it
        ended, or after ``timeout`` seconds.
        """
        process = self._running[name]
        until(
            lambda: answers() or process.poll() is not None,
            timeout,
            lambda: f"{name} does not answer:\n{self.tail(name)}",
        )
        if process.poll() is not None:
            raise RuntimeError(f"{name} ended with {process.poll()}:\n{self.tail(name)}")

    def stop(self, name: str, grace: float = 10.0) -> None:
        """SIGTERM, ``grace`` seconds, SIGKILL; 0: SIGKILL at once. Returns when it is
        gone.
        """
        process = self._running.pop(name, None)
        if process is not None:
            end(process, grace)
        (self.folder / "pids" / name).unlink(missing_ok=True)

    def stop_all(self, grace: float = 10.0) -> None:
        """The last one started first."""
        for name in reversed(list(self._running)):
            self.stop(name, grace)

    def end_leftovers(self) -> None:
        """End what a killed test left running: ids whose start time is the one that was
        written down.
        """
        for file in (self.folder / "pids").iterdir():
            pid, began = json.loads(file.read_text() or "[0, 0]")
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if process.create_time() == began:
                    end(process, 0)
            file.unlink()

    def keep_logs(self) -> Path:
        """Copy them to a folder that no later test clears."""
        kept = ROOT / ".cache" / "cluster-logs" / datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        shutil.copytree(self.folder / "log", kept, dirs_exist_ok=True)
        print(f"the cluster's logs: {kept}")
        return kept

    def tail(self, name: str, lines: int = 20) -> str:
        text = (self.folder / "log" / name).read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])


def end(process: psutil.Process, grace: float) -> None:
    """SIGTERM, ``grace`` seconds, SIGKILL; returns when it is gone."""
    with suppress(psutil.NoSuchProcess):
        if grace:
            process.terminate()
            with suppress(psutil.TimeoutExpired):
                process.wait(grace)
                return
        process.kill()
        process.wait(10)
