"""What a resource on this host is beside its file: each kind has a handler, made for one
resource.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any, ClassVar

from model_delivery.base import Permanent, private_folder, proven
from model_delivery.places.host.cards import Tenant
from model_delivery.places.host.processes import ProcessFolder, Run, tail, wait
from model_delivery.places.host.sleeping import held
from model_delivery.values import Ref, Resource

Bound = Mapping[str, Any]
PASSED_ON = (
    *("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_HOME", "USER", "SSL_CERT_FILE"),
    *("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"),
)


@dataclass(frozen=True)
class StateFolder:
    """``$MODEL_DELIVERY_HOME``: where everything lies, and the children of this process
    by their folder. ``leaving``: processes that take no room in a dry run.
    """

    home: Path
    children: dict[Path, Popen[bytes]] = field(default_factory=dict)
    leaving: tuple[ProcessFolder, ...] = ()

    def folder(self, delivery: str) -> Path:
        return proven(self.home / "deliveries" / delivery, self.home)

    def logs(self, delivery: str) -> Path:
        return proven(self.folder(delivery) / "logs", self.home)

    def engine_logs(self, delivery: str, release: str) -> dict[int, Path]:
        """Of each of its starts, by the start's number."""
        name = re.compile(rf"{re.escape(release)}-(\d{{1,9}})\.log")
        paths = ((name.fullmatch(path.name), path) for path in self.logs(delivery).glob("*.log"))
        return {int(found[1]): path for found, path in paths if found}

    def slots(self, delivery: str) -> Path:
        return proven(self.folder(delivery) / "slots", self.home)

    def process(self, delivery: str, ref: Ref) -> ProcessFolder:
        path = self.folder(delivery) / "processes" / f"{ref.kind}-{ref.name}"
        return ProcessFolder(proven(path, self.home), self.children)

    def processes(self, delivery: str, kind: str = "") -> Iterator[ProcessFolder]:
        """Those that ever ran, of a kind where it is named; ``delivery`` may be ``*``.
        None lies behind a link.
        """
        for state in self.home.glob(f"deliveries/{delivery}/processes/{kind}*/state.json"):
            with suppress(Permanent):
                yield ProcessFolder(proven(state.parent, self.home), self.children)

    def tenants(self, engines: Iterable[ProcessFolder]) -> tuple[Tenant, ...]:
        """Of the GPUs, with whatever of them runs."""
        return tuple(self._tenant(engine) for engine in engines)

    def _tenant(self, engine: ProcessFolder) -> Tenant:
        delivery, _, name = engine.path.parts[-3:]
        bound = engine.binding
        return Tenant(
            f"{delivery} {name.partition('-')[2]}",
            tuple(bound.get("gpus", ())),
            bound.get("share"),
            frozenset(process.pid for process in engine.members()),
            engine in self.leaving,
            held(engine) is not None,
        )


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

    def settle(self, bound: Bound) -> None:
        """What takes long of it: nobody else is kept waiting meanwhile."""

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
    def folder(self) -> ProcessFolder:
        return self.host.process(self.resource.delivery, self.resource.ref)

    @property
    def logs(self) -> Path:
        return self.host.logs(self.resource.delivery)

    @property
    def log(self) -> Path:
        return Path(self.folder.binding.get("log", os.devnull))

    @property
    def grace(self) -> float:
        """Seconds after SIGTERM."""
        return 10.0

    def run(self, bound: Bound) -> Run:
        """How it is started; what it reads is written into its folder."""
        raise NotImplementedError

    def stands(self) -> bool:
        return self.folder.running

    def act(self, bound: Bound) -> None:
        private_folder(self.folder.path)
        run = self.run(bound)
        proven(run.log, self.host.home)
        self.folder.start(run)

    def status(self, bound: Bound) -> Bound:
        state = self.folder.state
        binding = {"log": "", **state.get("binding", {})}
        since = binding.pop("since", 0)
        return {
            **binding,
            "alive": self.folder.running,
            "pid": state.get("pid"),
            "began": self.folder.began,
            "exit_code": self.folder.exit_code(),
            "log_tail": tail(Path(binding["log"] or os.devnull), since),
        }

    def stop(self, grace: float | None) -> None:
        self.folder.stop(self.grace if grace is None else grace)
        shutil.rmtree(self.folder.path, ignore_errors=True)

    def lines(self, *, follow: bool) -> Iterator[bytes]:
        rest = b""
        with (self.log if self.log.exists() else Path(os.devnull)).open("rb") as file:
            while True:
                ended = not (follow and self.folder.running)
                chunk = file.read()
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines
                if ended:
                    break
                if not chunk:
                    wait([self.folder], 0.1)
        if rest:
            yield rest


def passed_on() -> dict[str, str]:
    """What a process sees of our own environment: no token, no Prefect setting."""
    return {name: os.environ[name] for name in PASSED_ON if name in os.environ}
