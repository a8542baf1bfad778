"""A host's delivery whose releases are sabotaged, asked all along through its stable
address.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.sabotage.cases import Case
from tests.parts.ports import free_port
from tests.parts.timing_engine import engine_folder
from tests.parts.tiny_model import tiny_model

NAME = "sabotaged"
GOOD = ("--ttft", "20", "--itl", "5")
PROFILE = {"prompt_tokens": 32, "output_tokens": 24, "ignore_eos": True, "timeout": 10}
EVERY, PATIENCE = 0.1, 5.0


@dataclass
class Asked:
    """What came of the requests through the stable address."""

    came: Counter[str] = field(default_factory=Counter)

    @property
    def good(self) -> int:
        return self.came["200"]

    @property
    def told(self) -> str:
        bad = ", ".join(f"{number} × {kind}" for kind, number in self.came.items() if kind != "200")
        return f"{self.good}/{self.came.total()}" + (f" ({bad})" if bad else "")


@dataclass(frozen=True)
class Came:
    """What `deliver up` said; ``lines``: of its progress."""

    code: int
    said: dict[str, Any]
    lines: tuple[str, ...]
    seconds: float

    @property
    def result(self) -> str:
        return str(self.said.get("result", "refused"))

    @property
    def findings(self) -> list[dict[str, str]]:
        return [self.said["error"], *self.said.get("others", ())] if "error" in self.said else []


class Lab:
    """``duration`` and ``repeats`` of the load tests; 0: there is none."""

    def __init__(self, folder: Path, duration: str, repeats: int) -> None:
        self.folder, self.duration, self.repeats = folder, duration, repeats
        self.engine, self.model, self.port = engine_folder(folder / "engine"), tiny_model(folder / "model"), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.numbers = count()
        (folder / "key").touch(0o600)
        (folder / "key").write_text("a-key-of-the-sabotage")
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        self.environ = clean | {"MODEL_DELIVERY_HOME": str(folder / "home"), "PREFECT_HOME": str(folder / "prefect")}

    def spec(self, *args: str, watch: str = "0s", api_key: bool = False) -> Path:
        """Of a release that is like no other, by a label without effect."""
        number = next(self.numbers)
        key = {"api_key": {"file": str(self.folder / "key")}} if api_key else {}
        slo = {"ttft_p95_max": "60ms", "e2e_p95_max": "400ms"}
        load = {"profile": PROFILE, "users": 6, "warmup": "0s", "duration": self.duration, "repeats": self.repeats}
        compared = {"max_regression": 0.1} if self.repeats > 1 else {}
        content = {
            "apiVersion": "model-delivery/v1",
            "name": NAME,
            "model": {"source": "local", "path": str(self.model)},
            "serving": {"args": [*GOOD, "--label", str(number), *args], **key},
            "target": {"kind": "process", "engine": str(self.engine), "port": self.port},
            "gates": {
                "smoke": {"max_tokens": 16},
                "throughput": load | compared | {"slo": slo} if self.repeats else None,
            },
            "rollout": {"watch": watch, "standby": "0s"},
        }
        file = self.folder / f"{number}.json"
        file.write_text(json.dumps(content))
        return file

    def up(self, file: Path, then: Mapping[str, Callable[[], None]] | None = None) -> Came:
        """Deliver it; ``then``: what is done once a line of progress begins so."""
        began, todo, lines = time.monotonic(), dict(then or {}), list[str]()
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(self._command("up", file, "--json"), env=self.environ, text=True, **pipes) as run:
            for line in run.stderr or ():
                lines.append(line.rstrip())
                for start in [start for start in todo if line.startswith(start)]:
                    todo.pop(start)()
            said = json.loads(run.stdout.read() if run.stdout else "")
        return Came(run.returncode, said, tuple(lines), time.monotonic() - began)

    def down(self) -> None:
        subprocess.run(self._command("down", NAME), env=self.environ, check=False, capture_output=True)

    def engines(self) -> list[psutil.Process]:
        """Those of this lab, the oldest first."""
        program, every = str(self.engine / "timing-server"), psutil.process_iter(["cmdline", "create_time"])
        found = [process for process in every if (process.info["cmdline"] or [""])[0] == program]
        return sorted(found, key=lambda process: float(process.info["create_time"]))

    def wedge(self) -> None:
        """The newest engine says it is well from now on, and gives no token."""
        self.engines()[-1].send_signal(signal.SIGUSR1)

    @contextmanager
    def asking(self) -> Iterator[Asked]:
        """All along the block, through the stable address."""
        asked, over = Asked(), threading.Event()
        body = {"model": NAME, "prompt": "1", "max_tokens": 1}

        def ask() -> None:
            with httpx.Client(trust_env=False, timeout=PATIENCE) as client:
                while not over.wait(EVERY):
                    try:
                        kind = str(client.post(f"{self.url}/v1/completions", json=body).status_code)
                    except httpx.HTTPError as error:
                        kind = type(error).__name__
                    asked.came[kind] += 1

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield asked
        finally:
            over.set()
            thread.join()

    @contextmanager
    def traffic(self) -> Iterator[Callable[[], None]]:
        """What begins to ask the newest engine, until the block ends."""
        over, threads = threading.Event(), list[threading.Thread]()

        def ask(url: str) -> None:
            body = {"model": NAME, "prompt": "1", "max_tokens": 4}
            with httpx.Client(trust_env=False, timeout=PATIENCE) as client:
                while not over.wait(0.02):
                    with suppress(httpx.HTTPError):
                        client.post(f"{url}/v1/completions", json=body)

        def begin() -> None:
            words = self.engines()[-1].info["cmdline"]
            url = f"http://127.0.0.1:{words[words.index('--port') + 1]}"
            threads.append(threading.Thread(target=ask, args=(url,)))
            threads[0].start()

        try:
            yield begin
        finally:
            over.set()
            for thread in threads:
                thread.join()

    def play(self, case: Case) -> Came:
        match case.during:
            case "traffic":
                with self.traffic() as begin:
                    return self.up(self.spec(*case.args, **case.spec), {"throughput: measuring": begin})
            case "wedge while watched":
                return self.up(self.spec(*case.args, **case.spec), {"watch:": self.wedge})
            case "wedge once promoted":
                file = self.spec(*case.args, **case.spec)
                if (first := self.up(file)).result != "promoted":
                    return first
                self.wedge()
                return self.up(file)
        return self.up(self.spec(*case.args, **case.spec))

    def _command(self, *words: object) -> list[str]:
        return [str(Path(sys.executable).with_name("deliver")), *map(str, words)]
