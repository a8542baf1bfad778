"""What there is on a host: each kind with its handler. Of what is not named here, a file is all."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from model_delivery.base.durable import replace_file
from model_delivery.places.host.engine import EngineProcess
from model_delivery.places.host.engines import DONE, environment_folder, make_environment
from model_delivery.places.host.handler import Bound, Handler, Process
from model_delivery.places.host.launcher import start_time
from model_delivery.places.host.processes import Run, identified, tail
from model_delivery.places.host.router import Router, Slot
from model_delivery.targets.process import ENGINE, ENVIRONMENT, FOLDER, ROUTER, SLOT, STEP
from model_delivery.values.engine import Engine
from model_delivery.values.kind import LEASE, RECORD, RELEASE, REPORT, Kind


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
        replace_file(given, self.resource.spec["input"])
        replace_file(self.log, "")
        argv = (sys.executable, "-m", "model_delivery.steps.run", self.resource.spec["step"], str(given), str(self.log))
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
        return Path(self.resource.spec["path"] or self.host.home, "models")

    def stands(self) -> bool:
        return self._models.is_dir()

    def act(self, bound: Bound) -> None:
        self._models.mkdir(parents=True, exist_ok=True)


class PythonEnvironment(Handler):
    """An engine's own, in a folder that says what it was made from: no file tells of it."""

    stored = False

    @property
    def _engine(self) -> Engine:
        return Engine.model_validate(self.resource.spec["engine"])

    def stands(self) -> bool:
        return self._engine.environment is None or (environment_folder(self._engine, self.host.home) / DONE).exists()

    def act(self, bound: Bound) -> None:
        make_environment(self._engine, self.host.home)


class Lease(Handler):
    """It ends with the process that holds it."""

    def bind(self) -> Bound:
        return {"start": start_time(self.resource.spec["pid"])}

    def status(self, bound: Bound) -> Bound:
        return {"alive": identified({"pid": self.resource.spec["pid"], **bound}) is not None}


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
