"""One machine: objects are files under ``$MODEL_DELIVERY_HOME``, engines and the router are processes, the lease ends with its holder."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import httpx
from pydantic import TypeAdapter

from model_delivery.base.durable import replace_file
from model_delivery.base.findings import Finding, Permanent
from model_delivery.base.secrets import Secret, SecretRef, read_secret
from model_delivery.places.host import binding, launcher, router
from model_delivery.places.host.engines import DONE, environment_folder, make_environment
from model_delivery.places.host.processes import Processes, Run, identified, tail
from model_delivery.targets.process import ENGINE, ENVIRONMENT, FOLDER, ROUTER, SLOT, STEP
from model_delivery.values.engine import Engine
from model_delivery.values.kind import LEASE, RECORD, RELEASE, REPORT
from model_delivery.values.resources import ABSENT, ANY, Change, Mismatch, Observed, Ref, Resource, Version, World

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
LOOK_SECONDS = 0.5
KINDS = {kind.name: kind for kind in (RECORD, RELEASE, REPORT, LEASE, ENGINE, ROUTER, SLOT, STEP, FOLDER, ENVIRONMENT)}
PROCESSES = (ENGINE, ROUTER, STEP)
GONE = {
    "Engine": "it ended",
    "Router": "it ended",
    "Step": "it ended without a result",
    "Slot": "its address is an old one",
}
SECRET_REF: TypeAdapter[SecretRef] = TypeAdapter(SecretRef)


class Host:
    """A place. Every object is one JSON file; what runs is known by the lock that its launcher holds."""

    lease_seconds = 24 * 3600.0  # it ends with its process; this bounds it where nobody can see that

    def __init__(self, home: Path) -> None:
        self.home = home
        self.processes = Processes()

    def folder(self, delivery: str) -> Path:
        return self.home / "deliveries" / delivery

    def put(self, resource: Resource, *, expect: Version = ANY, dry_run: bool = False) -> Change:
        if resource.ref.kind == ENVIRONMENT:
            return self._put_environment(resource, dry_run=dry_run)
        if dry_run and not self.home.exists():
            return Change(resource.ref, "created")
        with self._locked():
            old = self.get(resource.delivery, resource.ref)
            if expect not in (ANY, old.version if old else ABSENT):
                raise Mismatch(resource.ref)
            if old is not None and self._same(resource, old):
                return Change(resource.ref, "unchanged", version=old.version)
            bound = self._bind(resource)
            diff = tuple(difference(old.resource.spec if old else {}, resource.spec)) or (
                GONE.get(resource.ref.kind.name, "it is gone"),
            )
            action: Literal["updated", "created"] = "updated" if old else "created"
            if dry_run:
                return Change(resource.ref, action, diff)
            version = uuid.uuid4().hex
            self._write(resource, version, bound)
            self._effect(resource, bound)
        return Change(resource.ref, action, diff, version)

    def delete(self, delivery: str, ref: Ref, *, grace: float | None = None) -> Change:
        old = self.get(delivery, ref)
        if old is None:
            return Change(ref, "absent")
        if ref.kind in PROCESSES:
            self.processes.stop(self._process(delivery, ref), self._grace(old.resource) if grace is None else grace)
            shutil.rmtree(self._process(delivery, ref), ignore_errors=True)
        if ref.kind == SLOT:
            self._slot(delivery, ref).unlink(missing_ok=True)
        with self._locked():
            self._object(delivery, ref).unlink(missing_ok=True)
        return Change(ref, "deleted")

    def world(self, delivery: str) -> World:
        now = time.time()
        found = [self._read(path) for path in sorted(self.folder(delivery).glob("objects/*/*.json"))]
        return World(delivery, {o.resource.ref: o for o in found if o is not None}, now)

    def get(self, delivery: str, ref: Ref) -> Observed | None:
        return self._read(self._object(delivery, ref))

    def deliveries(self) -> tuple[str, ...]:
        return tuple(
            sorted(path.name for path in (self.home / "deliveries").glob("*") if (path / "objects" / "Record").exists())
        )

    def log(self, delivery: str, ref: Ref, *, follow: bool = True) -> Iterator[bytes]:
        folder = self._process(delivery, ref)
        path = self._log(delivery, ref)
        rest = b""
        with (path if path.exists() else Path(os.devnull)).open("rb") as file:
            while True:
                ended = not follow or not self.processes.alive(folder)
                chunk = file.read()
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines
                if ended:
                    break
                if not chunk:
                    self.processes.wait([folder], 0.1)
        if rest:
            yield rest

    def hint(self, delivery: str, timeout: float) -> None:
        folders = [path.parent for path in self.folder(delivery).glob("processes/*/state.json")]
        self.processes.wait([f for f in folders if self.processes.alive(f)], min(timeout, LOOK_SECONDS))

    def secret(self, ref: SecretRef) -> Secret:
        return read_secret(ref)

    def look_up(self, path: str) -> dict[str, Any] | None:
        return None

    def rights(self) -> Sequence[Mapping[str, Any]] | None:
        return None

    def own_image(self) -> str | None:
        return None

    def listening(self, port: int) -> bool:
        return binding.listening("127.0.0.1", port)

    def engine_log(self, delivery: str, release: str, *, follow: bool) -> Iterator[bytes]:
        yield from self.log(delivery, Ref(ENGINE, release), follow=follow)

    # What follows binds and acts; one object's kind decides.

    def _same(self, resource: Resource, old: Observed) -> bool:
        if old.resource != resource:
            return False
        match resource.ref.kind.name:
            case "Engine" | "Router":
                return bool(old.status["alive"])
            case "Step":
                return bool(old.status["alive"] or old.status["finished"])
            case "Slot":
                return bool(old.status["written"] == old.status["address"])
            case "Folder":
                return self._models(resource).is_dir()
        return True

    def _bind(self, resource: Resource) -> dict[str, Any]:
        match resource.ref.kind.name:
            case "Engine":
                return binding.bind(resource.spec, self._taken())
            case "Router" if not self.processes.alive(self._process(resource.delivery, resource.ref)):
                host, port = resource.spec["host"], resource.spec["port"]
                if binding.listening(host, port):
                    why = f"something else listens on {host}:{port}"
                    raise Permanent(
                        Finding(
                            "todo",
                            "the service's port is taken",
                            why,
                            "choose another target.port, or stop what listens there",
                        )
                    )
            case "Lease":
                return {"start": launcher.start_time(resource.spec["pid"])}
        return {}

    def _effect(self, resource: Resource, bound: Mapping[str, Any]) -> None:
        delivery, ref = resource.delivery, resource.ref
        match ref.kind.name:
            case "Engine":
                self.processes.start(self._process(delivery, ref), self._engine(resource, bound))
            case "Router":
                self._start_router(resource)
            case "Step":
                self._start_step(resource)
            case "Slot":
                replace_file(self._slot(delivery, ref), self._address(delivery, resource.spec["release"]) or "")
            case "Folder":
                self._models(resource).mkdir(parents=True, exist_ok=True)

    def _engine(self, resource: Resource, bound: Mapping[str, Any]) -> Run:
        spec = resource.spec
        engine = Engine.model_validate(spec["engine"])
        environment = environment_folder(engine, self.home)
        root = Path(spec["store"]) if spec["store"] else self.home
        args = list(spec["args"])
        process = self._process(resource.delivery, resource.ref)
        if spec["chat_template"] is not None:
            process.mkdir(parents=True, exist_ok=True)
            template = process / "chat_template.jinja"
            replace_file(template, spec["chat_template"])
            args += ["--chat-template", str(template)]
        secret = {name: read_secret_json(ref) for name, ref in spec["secret_env"].items()}
        environ = passed_on() | engine.environ(bound["cpus"]) | spec["env"] | secret
        if bound["gpus"]:
            environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, bound["gpus"]))
        argv = engine.argv(environment, root / spec["model"], tuple(spec["names"]), bound["port"], args)
        number = len(list(self._logs(resource.delivery).glob(f"{resource.ref.name}-*.log"))) + 1
        log = self._logs(resource.delivery) / f"{resource.ref.name}-{number}.log"
        return Run(tuple(argv), environ, log, {**bound, "log": str(log)}, tuple(bound["cpus"]))

    def _start_router(self, resource: Resource) -> None:
        folder = self._process(resource.delivery, resource.ref)
        folder.mkdir(parents=True, exist_ok=True)
        slots = self.folder(resource.delivery) / "slots"
        slots.mkdir(parents=True, exist_ok=True)
        config = folder / "caddy.json"
        replace_file(config, router.configuration(resource.spec["host"], resource.spec["port"], slots))
        environ = passed_on() | {"XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
        log = self._logs(resource.delivery) / "router.log"
        argv = (str(router.caddy()), "run", "--config", str(config))
        self.processes.start(folder, Run(argv, environ, log, {"log": str(log), **resource.spec}))

    def _start_step(self, resource: Resource) -> None:
        folder = self._process(resource.delivery, resource.ref)
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / "input.json", resource.spec["input"])
        replace_file(folder / "output.jsonl", "")
        argv = (
            sys.executable,
            "-m",
            "model_delivery.steps.run",
            resource.spec["step"],
            str(folder / "input.json"),
            str(folder / "output.jsonl"),
        )
        log = folder / "log"
        self.processes.start(folder, Run(argv, dict(os.environ), log, {"log": str(log)}, session=False))

    def _put_environment(self, resource: Resource, *, dry_run: bool) -> Change:
        engine = Engine.model_validate(resource.spec["engine"])
        if engine.environment is None or (environment_folder(engine, self.home) / DONE).exists():
            return Change(resource.ref, "unchanged")
        if not dry_run:
            make_environment(engine, self.home)
        return Change(resource.ref, "created")

    def _status(self, resource: Resource, bound: Mapping[str, Any]) -> dict[str, Any]:
        delivery, ref = resource.delivery, resource.ref
        match ref.kind.name:
            case "Engine":
                return self._process_status(resource) | {"healthy": self._healthy(resource)}
            case "Router":
                listening = binding.listening(resource.spec["host"], resource.spec["port"])
                return self._process_status(resource) | {"healthy": listening}
            case "Step":
                last = (tail(self._process(delivery, ref) / "output.jsonl").splitlines() or [""])[-1]
                return self._process_status(resource) | {"finished": last.startswith(('{"result"', '{"findings"'))}
            case "Slot":
                path = self._slot(delivery, ref)
                return {
                    "written": path.read_text() if path.exists() else None,
                    "address": self._address(delivery, resource.spec["release"]),
                }
            case "Lease":
                return {"alive": identified({"pid": resource.spec["pid"], "start": bound["start"]}) is not None}
        return {}

    def _process_status(self, resource: Resource) -> dict[str, Any]:
        folder = self._process(resource.delivery, resource.ref)
        state = self.processes.state(folder)
        bound = state.get("binding", {})
        log = bound.get("log", "")
        alive = self.processes.alive(folder) if resource.ref.kind == STEP else self.processes.running(folder)
        said = {
            "alive": alive,
            "pid": state.get("pid"),
            "exit_code": self.processes.exit_code(folder),
            "log": log,
            "log_tail": tail(Path(log)) if log else "",
        }
        return {**bound, **said}

    def _healthy(self, resource: Resource) -> bool:
        folder = self._process(resource.delivery, resource.ref)
        if not self.processes.running(folder):
            return False
        port = self.processes.state(folder)["binding"]["port"]
        try:
            answer = httpx.get(
                f"http://127.0.0.1:{port}{resource.spec['engine']['ready']['health']}", timeout=5, trust_env=False
            )
        except httpx.HTTPError:
            return False
        return answer.status_code == httpx.codes.OK

    def _address(self, delivery: str, release: str) -> str | None:
        folder = self._process(delivery, Ref(ENGINE, release))
        port = self.processes.state(folder).get("binding", {}).get("port")
        return f"127.0.0.1:{port}" if port else None

    def _taken(self) -> list[Mapping[str, Any]]:
        folders = [path.parent for path in self.home.glob("deliveries/*/processes/Engine-*/state.json")]
        return [self.processes.state(folder)["binding"] for folder in folders if self.processes.running(folder)]

    def _grace(self, resource: Resource) -> float:
        if resource.ref.kind == ENGINE:
            stop = Engine.model_validate(resource.spec["engine"]).stop
            return stop.drain.seconds + stop.grace.seconds
        return 10.0

    def _read(self, path: Path) -> Observed | None:
        try:
            said = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        resource = Resource(
            Ref(KINDS[said["kind"]], said["name"]), said["role"], said["delivery"], said["spec"], said["release"]
        )
        return Observed(resource, said["version"], self._status(resource, said["bound"]))

    def _write(self, resource: Resource, version: Version, bound: Mapping[str, Any]) -> None:
        ref = resource.ref
        whole: dict[str, Any] = {
            "kind": ref.kind.name,
            "name": ref.name,
            "role": resource.role,
            "delivery": resource.delivery,
            "release": resource.release,
        }
        whole |= {"version": version, "bound": dict(bound), "spec": dict(resource.spec)}
        path = self._object(resource.delivery, ref)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(whole, indent=1))

    def _models(self, resource: Resource) -> Path:
        return Path(resource.spec["path"] or self.home) / "models"

    def _object(self, delivery: str, ref: Ref) -> Path:
        return self.folder(delivery) / "objects" / ref.kind.name / f"{ref.name}.json"

    def _process(self, delivery: str, ref: Ref) -> Path:
        return self.folder(delivery) / "processes" / f"{ref.kind}-{ref.name}"

    def _slot(self, delivery: str, ref: Ref) -> Path:
        return self.folder(delivery) / "slots" / ref.name

    def _logs(self, delivery: str) -> Path:
        return self.folder(delivery) / "logs"

    def _log(self, delivery: str, ref: Ref) -> Path:
        if ref.kind == STEP:
            return self._process(delivery, ref) / "output.jsonl"
        return Path(self.processes.state(self._process(delivery, ref)).get("binding", {}).get("log", os.devnull))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def passed_on() -> dict[str, str]:
    """What an engine sees of our own environment: no token, no Prefect setting."""
    return {name: os.environ[name] for name in PASSED_ON if name in os.environ}


def read_secret_json(ref: Mapping[str, Any]) -> str:
    return read_secret(SECRET_REF.validate_python(ref)).reveal()


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Lines ``field: old → new`` for each top-level field that differs."""
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if before != after:
            yield (
                f"{key}: {json.dumps(before)[:200]} → {json.dumps(after)[:200]}"
                if old
                else f"{key}: {json.dumps(after)[:200]}"
            )
