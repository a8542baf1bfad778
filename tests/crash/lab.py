"""A delivery under test: each run is a process of its own, which the test may kill with
SIGKILL before or after any effect.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
import psutil

from model_delivery.base import Trouble
from model_delivery.places.guarded import observed
from model_delivery.places.host.place import Host
from model_delivery.run.record import Record, load
from model_delivery.spec import DeliverySpec, parse_spec
from model_delivery.values import RECORD_REF, Ref

Event = tuple[Literal["before", "after"], str, str]
NAME = "crash"


@dataclass(frozen=True)
class Result:
    """How a run ended: its exit code (None: killed by the test), what it returned or
    said, and the effects that it began or finished.
    """

    code: int | None
    said: Any
    events: tuple[Event, ...]


@dataclass
class Lab:
    """A state folder, a model and the stand-in engine; every release differs by its
    label.
    """

    home: Path
    model: Path
    engine: Path
    port: int
    labels: int = 0
    rollout: dict[str, Any] = field(default_factory=dict)

    def spec(self, *args: str, slo: dict[str, Any] | None = None, cpus: int = 1, **rollout: Any) -> DeliverySpec:
        self.labels += 1
        throughput = {
            "profile": "smoke",
            "users": 2,
            "warmup": "0s",
            "duration": "300ms",
            "slo": slo or {"error_rate_max": 0},
        }
        return parse_spec(
            {
                "apiVersion": "model-delivery/v1",
                "name": NAME,
                "model": {"source": "local", "path": str(self.model)},
                "serving": {
                    "args": ["--label", f"r{self.labels}", "--ttft", "2", "--itl", "1", *args],
                    "resources": {"limits": {"cpu": cpus}},
                },
                "target": {"kind": "process", "engine": str(self.engine), "port": self.port},
                "gates": {
                    "smoke": {"prompt": "What is the capital of France?", "expect": "Paris", "max_tokens": 16},
                    "throughput": throughput,
                },
                "rollout": {"strategy": "blue-green", "watch": "0s", "standby": "0s", **rollout},
            }
        )

    def untested(self, *args: str, **more: Any) -> DeliverySpec:
        """A spec without gates, for what is about the protocol alone."""
        return parse_spec(
            self.spec(*args, **more).model_dump(mode="json") | {"gates": {"smoke": None, "throughput": None}}
        )

    def deliver(
        self,
        spec: DeliverySpec,
        kill_at: int | None = None,
        request: str | None = None,
        meanwhile: Callable[[int], None] | None = None,
    ) -> Result:
        from model_delivery.flows.deliver import deliver

        return self.run(lambda: deliver.fn(spec, request), kill_at, meanwhile)

    def rollback(self, to: str | None, kill_at: int | None = None) -> Result:
        from model_delivery.flows.rollback import rollback

        return self.run(lambda: rollback.fn(NAME, to), kill_at)

    def written(self, spec: DeliverySpec) -> str:
        """The file that holds it."""
        file = self.home.parent / "spec.yaml"
        file.write_text(json.dumps(spec.model_dump(mode="json")))
        return str(file)

    def says(self, *words: str) -> str:
        """What `deliver` prints; it ends with 0."""
        command = [str(Path(sys.executable).with_name("deliver")), *words]
        environ = {"PATH": os.environ["PATH"], "MODEL_DELIVERY_HOME": str(self.home)}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def run(
        self, act: Callable[[], Any], kill_at: int | None = None, meanwhile: Callable[[int], None] | None = None
    ) -> Result:
        """Fork, act, and report; at its effect number ``kill_at`` (before and after count
        apart) the run kills itself with SIGKILL.
        """
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            self._act(act, write, kill_at)
        os.close(write)
        if meanwhile is not None:
            meanwhile(pid)
        with os.fdopen(read, "rb") as pipe:
            lines = [json.loads(line) for line in pipe.read().splitlines()]
        _, status = os.waitpid(pid, 0)
        events = tuple((e[0], e[1], e[2]) for e in lines if isinstance(e, list))
        said = next((line for line in lines if isinstance(line, dict)), None)
        if os.WIFSIGNALED(status):
            return Result(None, said, events)
        return Result(os.waitstatus_to_exitcode(status), said, events)

    def _act(self, act: Callable[[], Any], write: int, kill_at: int | None) -> None:
        os.setpgid(0, 0)
        os.environ["MODEL_DELIVERY_HOME"] = str(self.home)
        count = 0

        def observer(when: Literal["before", "after"], verb: str, ref: Ref) -> None:
            nonlocal count
            os.write(write, json.dumps([when, verb, str(ref)]).encode() + b"\n")
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

        try:
            with observed(observer):
                said, code = act(), 0
        except Trouble as trouble:
            said, code = {"trouble": trouble.text}, trouble.exit_code
        except BaseException as error:  # a forked child must never return into the test
            said, code = {"error": repr(error)}, 99
        os.write(write, json.dumps(said).encode() + b"\n")
        os._exit(code)

    @property
    def host(self) -> Host:
        return Host(self.home)

    @property
    def record(self) -> Record:
        seen = self.host.get(NAME, RECORD_REF)
        assert seen is not None
        return load(seen.resource.spec)

    def answers(self) -> dict[str, Any]:
        """What the stable address says of its models."""
        answer: dict[str, Any] = (
            httpx.get(f"http://127.0.0.1:{self.port}/v1/models", timeout=10, trust_env=False).raise_for_status().json()
        )
        return answer

    def token(self) -> str:
        """What the stable address generates."""
        asked = {"model": NAME, "prompt": "x", "max_tokens": 1}
        answer = httpx.post(f"http://127.0.0.1:{self.port}/v1/completions", json=asked, timeout=10, trust_env=False)
        return str(answer.raise_for_status().json()["choices"][0]["text"])

    def processes(self) -> list[psutil.Process]:
        """Every process that has to do with this lab, whoever its parent is: by its
        command line or its working folder.
        """
        found = []
        for process in psutil.process_iter():
            try:
                told = " ".join(process.cmdline()) + " " + process.cwd()
                if (str(self.home) in told or str(self.engine) in told) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
                continue
        return found

    def converged(self, serving: str | None) -> None:
        """One release serves, alone and with all of the traffic; nothing is left to
        change; no process without a record.
        """
        record = self.record
        assert record.candidate is None, record.candidate
        assert record.serving == serving, (record.serving, serving)
        world = self.host.world(NAME)
        engines = {ref.name: o.status for ref, o in world.objects.items() if ref.kind.name == "Engine"}
        asleep = set(record.desired.asleep)
        assert set(engines) == ({serving} if serving else set()) | asleep
        awake = [status for name, status in engines.items() if name not in asleep]
        assert all(status["alive"] and status["healthy"] and not status["asleep"] for status in awake)
        assert all(engines[name]["asleep"] or not engines[name]["alive"] for name in asleep)
        slots = [o.status for ref, o in world.objects.items() if ref.kind.name == "Slot"]
        if serving:
            address = f"127.0.0.1:{engines[serving]['port']}"
            assert [s["written"] for s in slots] == [address] * 20
            assert self.answers()["data"][0]["id"] == NAME
            assert self.token()
        else:
            assert not slots
        assert not [ref for ref in world.objects if ref.kind.name == "Lease"]
        steps = [o.status for ref, o in world.objects.items() if ref.kind.name == "Step"]
        assert not steps or (record.ended[-1].exit_code != 0 and all(s["finished"] and not s["alive"] for s in steps))
        kept = {o.status["pid"] for o in world.objects.values() if o.status.get("pid")}
        strays = [p.cmdline() for p in self.processes() if p.pid not in kept]
        assert not strays, strays
        from model_delivery.verbs.status import status

        assert status(self.host, NAME).changes == ()
        seen = [(e.release, e.attempt, e.outcome) for e in record.ended if e.outcome != "rolled back from"]
        assert len(seen) == len(set(seen)), seen

    def stop(self) -> None:
        """Take everything down, whatever state it is in."""
        for process in self.processes():
            process.kill()
