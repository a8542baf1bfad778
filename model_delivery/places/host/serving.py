"""vLLM, or what answers like it, as a process of this host."""

from __future__ import annotations

from dataclasses import replace
from http import HTTPStatus
from pathlib import Path

from pydantic import TypeAdapter

from model_delivery.base import (
    Finding,
    Permanent,
    Progress,
    Refused,
    SecretRef,
    read_file,
    read_secret,
    replace_file,
    report,
)
from model_delivery.models.listing import is_weights
from model_delivery.models.manifest import read_manifest
from model_delivery.places.host import binding, caches, cards
from model_delivery.places.host.asking import ask
from model_delivery.places.host.engines import environment_folder, has_module
from model_delivery.places.host.handler import Bound, Handler, Process, passed_on
from model_delivery.places.host.processes import ProcessFolder, Run
from model_delivery.places.host.sleeping import PRIVATE, Sleeper, forget, held
from model_delivery.places.host.warming import cool, warm
from model_delivery.targets.process import ENGINE, HOST, ROUTE
from model_delivery.values import Engine
from model_delivery.values.engine import DEFAULT_LOADER, Stop
from model_delivery.values.gpus import VISIBLE, wanted

SECRET_REFS = TypeAdapter(dict[str, SecretRef])


class EngineProcess(Process):
    """With a port, CPUs and GPUs of its own."""

    @property
    def grace(self) -> float:
        stop = engine_of(self).stop if self.spec else Stop()
        return stop.drain.seconds + stop.grace.seconds

    @property
    def _stands_by(self) -> bool:
        """It holds no card: it sleeps, or is not started at all."""
        return self.resource.role == "standby"

    @property
    def _sleeper(self) -> Sleeper | None:
        ways = engine_of(self).sleep if self.spec else None
        return Sleeper(self.folder, ways) if ways else None

    @property
    def _asleep(self) -> bool:
        sleeper = self._sleeper
        return sleeper is not None and sleeper.asleep

    def stands(self) -> bool:
        if self._stands_by:
            return not self.folder.running or self._asleep
        return self.folder.running and self._as_wanted and not self._asleep

    @property
    def _as_wanted(self) -> bool:
        """Was it started with the loader that is wanted, and for this lap of a race?"""
        started = self.folder.binding
        return started.get("loader", DEFAULT_LOADER) == self._loader and self._lap in ("", started.get("lap"))

    @property
    def _lap(self) -> str:
        return str(self.spec.get("lap", ""))

    @property
    def _loader(self) -> str:
        return str(self.spec.get("loader", DEFAULT_LOADER))

    def bind(self) -> Bound:
        running = self.folder.running
        if self._lap:
            _must_have(engine_of(self), self._loader, self.host.home)
        if self._stands_by or (running and not self._asleep):
            return self.folder.binding
        others = [one for one in self.host.processes("*", f"{ENGINE}-") if one.running and one.path != self.folder.path]
        taken, leaving = list[Bound](), list[Bound]()
        for other in others:
            (leaving if other in self.host.leaving else taken).append(_taken(other))
        asked = wanted(self.spec)
        tenants = self.host.tenants(others) if asked.count else ()
        if running and asked.count:  # asleep it holds a little yet, and gives that back where it is started anew
            tenants = (*tenants, replace(*self.host.tenants([self.folder]), leaving=True))
        if running and binding.is_free(self.folder.binding, taken) and cards.have_room(self.folder.binding, tenants):
            return self.folder.binding
        if self._sleeper:
            self._must_be_private()
        return binding.bind(self.spec, taken, leaving, cards.choose(asked, tenants))

    def _must_be_private(self) -> None:
        """The addresses of its sleep are ours alone: a router that an older version
        started leads clients there.
        """
        router = self.host.process(self.resource.delivery, ROUTE)
        if router.running and PRIVATE[0] not in read_file(router.path / "caddy.json").decode(errors="replace"):
            what = f"the router of {self.resource.delivery} leads clients to what puts its engine to sleep"
            fix = f"`deliver down {self.resource.delivery}` once, then `deliver up`: its router is made anew"
            raise Refused(Finding("host.router-open", what, "an older version started it", fix))

    def act(self, bound: Bound) -> None:
        if self._stands_by:
            return
        if (sleeper := self._sleeper) and sleeper.asleep:
            why = "others have its cards" if bound != self.folder.binding else sleeper.wake()
            if not why:
                return
            report(Progress("wake", f"{self.resource.ref.name} is not woken ({why}): started anew"))
            self.folder.stop(0)
        if self.folder.running:
            if self._as_wanted:
                return
            self.folder.stop(engine_of(self).stop.grace.seconds)
        forget(self.folder)
        if self._lap:
            cool(self._model, self._weights)
        super().act(bound)
        started = self.host.children.get(self.folder.path)
        warm(self._model, self._weights.items(), lambda: started is None or started.poll() is None)

    def settle(self, bound: Bound) -> None:
        """What cannot sleep is stopped: a standby holds no card."""
        sleeper = self._sleeper
        if not self._stands_by or not self.folder.running or sleeper is None:
            return
        if why := sleeper.sleep(sum(self._weights.values()), engine_of(self).stop.drain.seconds):
            name = self.resource.ref.name
            report(Progress("standby", f"{name} cannot sleep ({why}): it is stopped, and a rollback starts it anew"))
            self.folder.stop(self.grace)

    @property
    def _weights(self) -> dict[str, int]:
        """Bytes of its weights by file, as its model's list says."""
        manifest = read_manifest(self._model)
        return {file.path: file.size for file in manifest.files if is_weights(file.path)} if manifest else {}

    @property
    def _model(self) -> Path:
        return Path(self.spec["store"] or self.host.home, self.spec["model"])

    def run(self, bound: Bound) -> Run:
        spec, engine, home, args = self.spec, engine_of(self), self.host.home, list(self.spec["args"])
        if spec["chat_template"] is not None:
            template = self.folder.path / "chat_template.jinja"
            replace_file(template, spec["chat_template"])
            args += ["--chat-template", str(template)]
        refs = SECRET_REFS.validate_python(spec["secret_env"])
        secrets = {name: read_secret(ref).reveal() for name, ref in refs.items()}
        if self._loader != DEFAULT_LOADER:
            args += (engine.loaders or {})[self._loader].args
        cache, bound = caches.kept(self, engine, {**bound, "loader": self._loader, "lap": self._lap})
        environ = passed_on() | cache | engine.environ(bound["cpus"]) | spec["env"] | secrets
        if bound["gpus"]:
            environ |= {VISIBLE: ",".join(map(str, bound["gpus"])), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        environment = environment_folder(engine, home)
        argv = engine.argv(environment, self._model, spec["names"], bound["port"], args)
        name = self.resource.ref.name
        number = max(self.host.engine_logs(self.resource.delivery, name), default=0) + 1
        return Run(argv, environ, self.logs / f"{name}-{number}.log", bound)

    def status(self, bound: Bound) -> Bound:
        """``stranger``: who else has its port. What is not its own is not healthy: it
        would be given the key.
        """
        seen = super().status(bound)
        healthy = bool(seen["alive"] and self.spec) and self._healthy(seen["port"])
        stranger = self.folder.stranger(seen["port"]) if seen["alive"] else ""
        asleep, suspect = self._asleep, caches.noted(self.folder, healthy=healthy)
        told = {"healthy": healthy and not stranger, "stranger": stranger, "asleep": asleep, "cache_suspect": suspect}
        return {**seen, **told}

    def _healthy(self, port: int) -> bool:
        answer = ask(HOST, port, self.spec["engine"]["ready"]["health"])
        return answer is not None and answer.status == HTTPStatus.OK


def _taken(other: ProcessFolder) -> Bound:
    """What its engine has of this machine; asleep, only its port and memory."""
    bound, weights = other.binding, held(other)
    return bound if weights is None else {"port": bound["port"], "memory": bound["memory"] + weights}


def _must_have(engine: Engine, loader: str, home: Path) -> None:
    """Permanent where the engine's own environment lacks what the loader needs."""
    module = found.module if (found := (engine.loaders or {}).get(loader)) else None
    if module and engine.environment and not has_module(engine, home, module):
        what, why = f"it is not there: {module} is not in the environment of {engine.name}", f"loader {loader} needs it"
        raise Permanent(Finding("engine.no-loader", what, why, "add it to the engine's uv.lock, or leave it"))


def engine_of(handler: Handler) -> Engine:
    return Engine.model_validate(handler.spec["engine"])
