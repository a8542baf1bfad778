"""What a resource on this host is beside its file: each kind has a handler, made for one
resource.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from model_delivery.places.host.processes import Processes, Run, tail
from model_delivery.values import Ref, Resource

Bound = Mapping[str, Any]
PASSED_ON = (
    "PATH",
    "HOME",
    "LANG",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "CUDA_HOME",
    "USER",
    "SSL_CERT_FILE",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
)


@dataclass(frozen=True)
class StateFolder:
    """``$MODEL_DELIVERY_HOME``: where everything lies, and the processes that are known
    by it.
    """

    home: Path
    processes: Processes = field(default_factory=Processes)

    def folder(self, delivery: str) -> Path:
        return self.home / "deliveries" / delivery

    def logs(self, delivery: str) -> Path:
        return self.folder(delivery) / "logs"

    def slots(self, delivery: str) -> Path:
        return self.folder(delivery) / "slots"

    def process(self, delivery: str, ref: Ref) -> Path:
        return self.folder(delivery) / "processes" / f"{ref.kind}-{ref.name}"


@dataclass(frozen=True)
class Handler:
    """Of a kind that is no more than its file. ``gone``: why one that is as it was is put
    again.
    """

    host: StateFolder
    resource: Resource
    gone: ClassVar[str] = "it is gone"
    stored: ClassVar[bool] = True

    @property
    def spec(self) -> Bound:
        return self.resource.spec

    def stands(self) -> bool:
        """Is what it asks for there, and in order?"""
        return True

    def bind(self) -> Bound:
        """What this machine gives it. Trouble when it cannot."""
        return {}

    def act(self, bound: Bound) -> None:
        """Make it so."""

    def status(self, bound: Bound) -> Bound:
        """What is seen of it now."""
        return {}

    def stop(self, grace: float | None) -> None:
        """Undo what ``act`` did."""

    def lines(self, *, follow: bool) -> Iterator[bytes]:
        """Of its log, where it has one; with ``follow`` until it has ended."""
        return iter(())


class Process(Handler):
    """Of what runs: its folder holds lock, state and what it is started with."""

    gone = "it ended"

    @property
    def folder(self) -> Path:
        return self.host.process(self.resource.delivery, self.resource.ref)

    @property
    def logs(self) -> Path:
        return self.host.logs(self.resource.delivery)

    @property
    def log(self) -> Path:
        return Path(self.host.processes.binding(self.folder).get("log", os.devnull))

    @property
    def grace(self) -> float:
        """Seconds after SIGTERM."""
        return 10.0

    def run(self, bound: Bound) -> Run:
        """How it is started; what it reads is written into its folder."""
        raise NotImplementedError

    @property
    def alive(self) -> bool:
        return self.host.processes.running(self.folder)

    def stands(self) -> bool:
        return self.alive

    def act(self, bound: Bound) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.host.processes.start(self.folder, self.run(bound))

    def status(self, bound: Bound) -> Bound:
        state = self.host.processes.state(self.folder)
        binding = state.get("binding", {})
        log = binding.get("log", "")
        return {
            **binding,
            "alive": self.alive,
            "pid": state.get("pid"),
            "exit_code": self.host.processes.exit_code(self.folder),
            "log": log,
            "log_tail": tail(Path(log)) if log else "",
        }

    def stop(self, grace: float | None) -> None:
        self.host.processes.stop(self.folder, self.grace if grace is None else grace)
        shutil.rmtree(self.folder, ignore_errors=True)

    def lines(self, *, follow: bool) -> Iterator[bytes]:
        log, rest = self.log, b""
        with (log if log.exists() else Path(os.devnull)).open("rb") as file:
            while True:
                ended = not follow or not self.host.processes.alive(self.folder)
                chunk = file.read()
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines
                if ended:
                    break
                if not chunk:
                    self.host.processes.wait([self.folder], 0.1)
        if rest:
            yield rest


def passed_on() -> dict[str, str]:
    """What a process sees of our own environment: no token, no Prefect setting."""
    return {name: os.environ[name] for name in PASSED_ON if name in os.environ}
