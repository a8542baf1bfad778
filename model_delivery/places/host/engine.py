"""An engine on this host: a process with a port, CPUs and GPUs of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
from pydantic import TypeAdapter

from model_delivery.base.durable import replace_file
from model_delivery.base.secrets import SecretRef, read_secret
from model_delivery.places.host import binding
from model_delivery.places.host.engines import environment_folder
from model_delivery.places.host.handler import Bound, Process, StateFolder, passed_on
from model_delivery.places.host.processes import Run
from model_delivery.targets.process import ENGINE
from model_delivery.values.engine import Engine
from model_delivery.values.resources import Ref

SECRET_REF: TypeAdapter[SecretRef] = TypeAdapter(SecretRef)


class EngineProcess(Process):
    @property
    def engine(self) -> Engine:
        return Engine.model_validate(self.resource.spec["engine"])

    @property
    def grace(self) -> float:
        stop = self.engine.stop
        return stop.drain.seconds + stop.grace.seconds

    def bind(self) -> Bound:
        return binding.bind(self.resource.spec, self._others())

    def run(self, bound: Bound) -> Run:
        spec, engine, args = self.resource.spec, self.engine, list(self.resource.spec["args"])
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
        url = f"http://127.0.0.1:{port}{self.resource.spec['engine']['ready']['health']}"
        try:
            return httpx.get(url, timeout=5, trust_env=False).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def _others(self) -> Iterator[Bound]:
        """What engines that run were bound to, of every delivery."""
        for state in self.host.home.glob(f"deliveries/*/processes/{ENGINE}-*/state.json"):
            if self.host.processes.running(state.parent):
                yield self.host.processes.binding(state.parent)


def address(host: StateFolder, delivery: str, release: str) -> str | None:
    """Where the release's engine listens; None when it was never started."""
    port = host.processes.binding(host.process(delivery, Ref(ENGINE, release))).get("port")
    return f"127.0.0.1:{port}" if port else None
