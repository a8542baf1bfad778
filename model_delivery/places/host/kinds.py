"""What there is on a host: each kind has a handler. Of what is not named here, a file is
all.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
from pydantic import TypeAdapter

from model_delivery.base import Finding, Permanent, SecretRef, read_secret
from model_delivery.base.durable import replace_file
from model_delivery.places.host import binding
from model_delivery.places.host.engines import DONE, environment_folder, make_environment
from model_delivery.places.host.handler import Bound, Handler, Process, passed_on
from model_delivery.places.host.launcher import start_time
from model_delivery.places.host.processes import Run, identified, tail
from model_delivery.places.host.router import caddy, configuration
from model_delivery.targets.process import ENGINE, ENVIRONMENT, FOLDER, ROUTER, SLOT, STEP
from model_delivery.values import LEASE, RECORD, RELEASE, REPORT, Engine, Kind, Ref

SECRET_REF: TypeAdapter[SecretRef] = TypeAdapter(SecretRef)


class EngineProcess(Process):
    """With a port, CPUs and GPUs of its own."""

    @property
    def engine(self) -> Engine:
        return Engine.model_validate(self.spec["engine"])

    @property
    def grace(self) -> float:
        stop = self.engine.stop
        return stop.drain.seconds + stop.grace.seconds

    def bind(self) -> Bound:
        return binding.bind(self.spec, self._others())

    def run(self, bound: Bound) -> Run:
        spec, engine, args = self.spec, self.engine, list(self.spec["args"])
        if spec["chat_template"] is not None:
            template = self.folder / "chat_template.jinja"
            replace_file(template, spec["chat_template"])
            args += ["--chat-template", str(template)]
        secret = {
            name: read_secret(SECRET_REF.validate_python(ref)).reveal() for name, ref in spec["secret_env"].items()
        }
        environ = passed_on() | engine.environ(bound["cpus"]) | spec["env"] | secret
        if bound["gpus"]:
            environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, bound["gpus"]))
        model, folder = Path(spec["store"] or self.host.home, spec["model"]), environment_folder(engine, self.host.home)
        argv = engine.argv(folder, model, tuple(spec["names"]), bound["port"], args)
        name = self.resource.ref.name
        log = self.logs / f"{name}-{len(list(self.logs.glob(f'{name}-*.log'))) + 1}.log"
        return Run(tuple(argv), environ, log, {**bound, "log": str(log)}, tuple(bound["cpus"]))

    def status(self, bound: Bound) -> Bound:
        seen = super().status(bound)
        return {**seen, "healthy": seen["alive"] and self._healthy(seen["port"])}

    def _healthy(self, port: int) -> bool:
        url = f"http://127.0.0.1:{port}{self.spec['engine']['ready']['health']}"
        try:
            return httpx.get(url, timeout=5, trust_env=False).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def _others(self) -> Iterator[Bound]:
        """What engines that run were bound to, of every delivery."""
        for state in self.host.home.glob(f"deliveries/*/processes/{ENGINE}-*/state.json"):
            if self.host.processes.running(state.parent):
                yield self.host.processes.binding(state.parent)


class Router(Process):
    """Caddy on the service's own port."""

    @property
    def _where(self) -> tuple[str, int]:
        return self.spec["host"], self.spec["port"]

    def bind(self) -> Bound:
        host, port = self._where
        if not self.host.processes.alive(self.folder) and binding.listening(host, port):
            why = f"something else listens on {host}:{port}"
            fix = "choose another target.port, or stop what listens there"
            raise Permanent(Finding("host.port-taken", "the service's port is taken", why, fix))
        return {}

    def run(self, bound: Bound) -> Run:
        slots, config = self.host.slots(self.resource.delivery), self.folder / "caddy.json"
        slots.mkdir(parents=True, exist_ok=True)
        replace_file(config, configuration(*self._where, slots))
        environ = passed_on() | {"XDG_DATA_HOME": str(self.folder), "XDG_CONFIG_HOME": str(self.folder)}
        log = self.logs / "router.log"
        argv = (str(caddy()), "run", "--config", str(config))
        return Run(argv, environ, log, {"log": str(log), **self.spec})

    def status(self, bound: Bound) -> Bound:
        return {**super().status(bound), "healthy": binding.listening(*self._where)}


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
        """Where its release's engine listens; None when that was never started."""
        engine = self.host.process(self.resource.delivery, Ref(ENGINE, self.spec["release"]))
        port = self.host.processes.binding(engine).get("port")
        return f"127.0.0.1:{port}" if port else None


class Step(Process):
    """A child of the run that started it; its output is its log."""

    gone = "it ended without a result"

    @property
    def alive(self) -> bool:
        return self.host.processes.alive(self.folder)

    @property
    def log(self) -> Path:
        return self.folder / "output.jsonl"

    def run(self, bound: Bound) -> Run:
        given, log = self.folder / "input.json", self.folder / "log"
        replace_file(given, self.spec["input"])
        replace_file(self.log, "")
        argv = (sys.executable, "-m", "model_delivery.steps.run", self.spec["step"], str(given), str(self.log))
        return Run(argv, dict(os.environ), log, {"log": str(log)}, session=False)

    def stands(self) -> bool:
        return self.alive or self._finished

    def status(self, bound: Bound) -> Bound:
        return {**super().status(bound), "finished": self._finished}

    @property
    def _finished(self) -> bool:
        last = (tail(self.log).splitlines() or [""])[-1]
        return last.startswith(('{"result"', '{"findings"'))


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

    @property
    def _engine(self) -> Engine:
        return Engine.model_validate(self.spec["engine"])

    def stands(self) -> bool:
        return self._engine.environment is None or (environment_folder(self._engine, self.host.home) / DONE).exists()

    def act(self, bound: Bound) -> None:
        make_environment(self._engine, self.host.home)


class Lease(Handler):
    """It ends with the process that holds it."""

    def bind(self) -> Bound:
        return {"start": start_time(self.spec["pid"])}

    def status(self, bound: Bound) -> Bound:
        return {"alive": identified({"pid": self.spec["pid"], **bound}) is not None}


HANDLERS: dict[Kind, type[Handler]] = {
    ENGINE: EngineProcess,
    ROUTER: Router,
    SLOT: Slot,
    STEP: Step,
    FOLDER: Folder,
    ENVIRONMENT: PythonEnvironment,
    LEASE: Lease,
}
KINDS = {kind.name: kind for kind in (RECORD, RELEASE, REPORT, *HANDLERS)}
