"""vLLM as a process on this host, behind a router on the stable port."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import INTERNAL_SERVER_ERROR
from typing import Annotated, Any, Literal

from pydantic import Field

from model_delivery.base import Count, Duration, Finding, KubeSecret, Refused, SecretRef, Size, Text
from model_delivery.diagnosis.engine_log import diagnose, last_line
from model_delivery.diagnosis.starting import passed, starting
from model_delivery.models.manifest import folder_name
from model_delivery.targets.protocol import Asked, Site, StepRun, Target, TargetKey, TargetSpec, UpAt, not_yet
from model_delivery.values import (
    Absent,
    Address,
    Capabilities,
    Current,
    Desired,
    Ended,
    Failed,
    InProgress,
    Kind,
    Lock,
    Payload,
    Phase,
    Readiness,
    Ref,
    Release,
    Resource,
    Role,
    Server,
    Start,
    Started,
    StepState,
    Storage,
    World,
    digest,
)
from model_delivery.values.engine import DEFAULT_LOADER

ENGINE, ROUTER, SLOT = Kind("Engine", foreground=True), Kind("Router"), Kind("Slot", detail=True)
STEP, FOLDER, ENVIRONMENT = Kind("Step"), Kind("Folder"), Kind("Environment")
ROUTE = Ref(ROUTER, "router")
SLOTS = 20
HOST, PORT = "127.0.0.1", 8000
SHARED = "stop what listens there (ss -ltnp shows it), or choose another target.port"
GPU = "nvidia.com/gpu"
LIMITS = ("cpu", "memory", GPU)
STARTED_AS: Mapping[str, Any] = {"loader": DEFAULT_LOADER, "lap": ""}  # beside an Engine's payload


class ProcessKey(TargetKey):
    """``port``: None in a record of an older version."""

    place = "host"
    kind: Literal["process"] = "process"
    port: int | None = None

    def admits(self, asked: TargetKey) -> bool:
        return isinstance(asked, ProcessKey) and self.port in (None, asked.port)

    def target(self) -> Target:
        return Process(self)


class ProcessTarget(TargetSpec):
    """An engine on this host behind a router on 127.0.0.1:``port``; ``engine``: a name
    under engines/, or a folder with an engine.toml.
    """

    files = ("engine",)
    keyed = ProcessKey
    kind: Literal["process"]
    engine: Text
    port: int = Field(PORT, ge=1, le=65535, strict=True)

    @property
    def image(self) -> None:
        return None

    def check(self, storage: Storage) -> None:
        if storage.claim is not None:
            raise ValueError("storage.claim: a host has no claims; use storage: {path: DIR} or leave it out")


class ProcessPayload(Payload):
    """What an Engine on the host states: its needs, which the host binds."""

    engine: dict[str, Any]
    model: str
    store: str | None
    env: dict[str, str]
    secret_env: dict[str, SecretRef]
    port: str
    cpus: Count
    gpus: Count
    memory: Annotated[int, Field(ge=0, lt=1 << 63)]

    @property
    def secrets(self) -> tuple[SecretRef, ...]:
        return tuple(self.secret_env.values())

    @property
    def startup_seconds(self) -> float:
        return Duration(self.engine["ready"]["timeout"]).seconds

    @property
    def sleeps(self) -> bool:
        return self.engine.get("sleep") is not None

    @property
    def loaders(self) -> tuple[str, ...]:
        return tuple(self.engine.get("loaders") or ())


@dataclass(frozen=True)
class Process(Target):
    """Engines are resources of kind Engine, the router one Router and twenty Slots: a
    slot is 5 % of the traffic.
    """

    spec, payloads = ProcessTarget, (ProcessPayload,)
    kinds = (ENGINE, ROUTER, SLOT, STEP, FOLDER, ENVIRONMENT)
    can = Capabilities(dark_first=True, weights="slots", sleep=True)
    key: ProcessKey

    @property
    def port(self) -> int:
        return self.key.port or PORT

    def address(self, name: str) -> Address:
        return Address(HOST, self.port)

    def root(self, storage: Storage) -> str | None:
        return storage.path

    def main(self, delivery: str, release: Release) -> Ref:
        return Ref(ENGINE, release.id)

    def payload(self, asked: Asked, lock: Lock) -> Payload:
        if lock.engine is None:
            raise Refused(Finding("target.no-engine", "no engine", "a process needs one", "name it in target.engine"))
        serving = asked.serving
        limits, secrets = serving.resources.limits, {"VLLM_API_KEY": serving.api_key} if serving.api_key else {}
        return ProcessPayload(
            engine=lock.engine.model_dump(mode="json"),
            model=folder_name(lock.snapshot),
            store=asked.storage.path,
            names=serving.model_names,
            args=serving.args,
            chat_template=serving.chat_template,
            env={name: value for name, value in serving.env.items() if isinstance(value, str)},
            secret_env={name: ref for name, ref in serving.env.items() if not isinstance(ref, str)} | secrets,
            api_key=serving.api_key,
            port="auto",
            cpus=whole_cpus(limits.get("cpu", 1)),
            gpus=int(limits.get(GPU, 0)),
            memory=Size(str(limits["memory"])).bytes if "memory" in limits else lock.engine.memory_bytes,
        )

    def storage(self, name: str, lock: Lock, storage: Storage) -> tuple[Resource, ...]:
        made: dict[Ref, dict[str, Any]] = {Ref(FOLDER, "models"): {"path": storage.path}}
        if lock.engine is not None and lock.engine.environment is not None:
            made[Ref(ENVIRONMENT, lock.engine.name)] = {"engine": lock.engine.model_dump(mode="json")}
        return tuple(Resource(ref, "storage", name, spec) for ref, spec in made.items())

    def compose(self, want: Desired) -> tuple[Resource, ...]:
        route: dict[Ref, dict[str, Any]] = {}
        if want.address is not None:
            route[ROUTE] = {"host": want.address.host, "port": want.address.port}
            route |= {Ref(SLOT, f"{n:02}"): {"release": owner} for n, owner in enumerate(slot_owners(want.shares))}
        return (
            *(self._engine(want, release) for release in want.releases),
            *(Resource(ref, "route", want.delivery, spec) for ref, spec in route.items()),
        )

    def _engine(self, want: Desired, release: Release) -> Resource:
        role: Role = "standby" if release.id in want.asleep else "release"
        how = {"loader": release.loader, "lap": release.lap}
        told = {name: value for name, value in how.items() if value != STARTED_AS[name]}
        return Resource(Ref(ENGINE, release.id), role, want.delivery, release.payload.content() | told, release.id)

    def step(self, run: StepRun) -> tuple[Resource, ...]:
        name = f"{run.name}-{digest([run.input, run.stage, run.attempt, run.try_])}"
        return (Resource(Ref(STEP, name), "step", run.delivery, {"step": run.name, "input": run.input}),)

    def step_state(self, ref: Ref, world: World) -> StepState:
        return Ended() if ref in world.objects and world.objects[ref].status["finished"] else Started()

    def readiness(self, release: Release, world: World) -> Readiness:
        seen = world.objects.get(self.main(world.delivery, release))
        if seen is None or _without_how(seen.resource.spec) != release.payload.content():
            return InProgress("the engine is not started")
        status = seen.status
        if status.get("cache_suspect"):
            return Absent("the engine ended, and is started once more without the cache of an earlier start")
        if not status["alive"]:
            return diagnose(status["log_tail"], status["exit_code"], f"log: {status['log']}")
        if status["stranger"]:
            what, why = "the engine's port is another's", f"{status['stranger']} listens on {HOST}:{status['port']}"
            fix = "end what listens there, and run again: an engine that is started gets a free port"
            return Failed(Finding("host.engine-port-taken", what, why, fix, (f"log: {status['log']}",)))
        if status["asleep"]:
            return InProgress("it is asleep")
        if status["healthy"]:
            return Current(f"http://{HOST}:{status['port']}")
        return starting(status["log_tail"])

    def start(self, release: Release, world: World) -> Start | None:
        seen = world.objects.get(self.main(world.delivery, release))
        if seen is None or not seen.status["alive"]:
            return None
        began, healthy = seen.status["began"], {Phase.HEALTHY: None} if seen.status["healthy"] else {}
        return Start(began, {Phase.PROCESS: began, **passed(seen.status["log_tail"]), **healthy})

    def servers(self, release: Release, world: World) -> tuple[Server, ...]:
        ref = self.main(world.delivery, release)
        if not isinstance(self.readiness(release, world), Current):
            return ()
        status = world.objects[ref].status
        return (Server(ref, HOST, status["port"], str(status["pid"])),)

    def routed(self, want: Desired, world: World) -> Readiness:
        if want.address is None:
            return Current("")
        router = world.objects.get(ROUTE)
        if router is None:
            return InProgress("no router")
        if not router.status["alive"]:
            why, evidence = last_line(router.status["log_tail"]), (f"log: {router.status['log']}",)
            fix = "run again; its log says more"
            return Failed(Finding("place.router-ended", "the router ended", why, fix, evidence))
        if router.status["shared"]:
            why = (
                f"{router.status['shared']} listens on {HOST}:{want.address.port} too, and gets a part of the requests"
            )
            return Failed(Finding("place.port-shared", "the service's port is shared", why, SHARED))
        slots = [(ref.name, seen.status) for ref, seen in world.objects.items() if ref.kind == SLOT]
        late = [name for name, status in slots if status["written"] != status["address"]]
        if late:
            return InProgress(f"slots {', '.join(late)} not moved")
        if not router.status["healthy"]:
            return InProgress("the router is starting")
        engines, by, code = (
            {status["address"] for _, status in slots},
            router.status["served_by"],
            router.status["code"],
        )
        older = by is None and code < INTERNAL_SERVER_ERROR  # a router that an older version started does not say who
        if engines and not older and by not in engines:
            return InProgress(f"{want.address.url} answers {code}, by {by or 'no engine'}")
        return Current(want.address.url)

    def preflight(self, asked: Asked, secrets: Mapping[str, SecretRef], place: Site, up_at: UpAt) -> Iterator[Finding]:
        serving = asked.serving
        wanted = {
            "storage.notebook": asked.storage.notebook,
            "serving.replicas above 1": serving.replicas.max > 1,
            "serving.pod": bool(serving.pod.model_dump(exclude_defaults=True)),
            "serving.cache (a host keeps one anyway)": serving.cache != "none",
            "serving.readahead (a host does so anyway)": serving.readahead,
            "runner.image": asked.runner.image is not None,
        }
        limits = {f"serving.resources.limits: {name}": name not in LIMITS for name in serving.resources.limits}
        yield from not_yet(self.key.kind, wanted | limits)
        for field, ref in secrets.items():
            try:
                if isinstance(ref, KubeSecret):
                    yield Finding(
                        "secret.not-on-a-host",
                        f"{field} names a Kubernetes secret",
                        "a host has none",
                        "use {env: NAME} or {file: PATH}",
                    )
                else:
                    place.secret(ref)
            except Refused as refused:
                yield from refused.findings
        up = up_at()
        if up is None and (who := place.listener(self.port)):
            yield Finding(
                "host.port-taken",
                "the service's port is taken",
                f"{who} listens on {HOST}:{self.port}",
                "choose another target.port, or stop what listens there",
            )
        elif up is not None and up.port != self.port:
            yield Finding(
                "target.moved",
                f"the port of {asked.name} cannot change while it is up",
                f"it is up on port {up.port}, the spec says {self.port}",
                f"`deliver down {asked.name}` first",
            )


def _without_how(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A race starts the same release in several ways."""
    return {name: value for name, value in spec.items() if name not in STARTED_AS}


def whole_cpus(limit: float | str) -> int:
    """CPUs are bound whole: ``500m`` is one, ``1500m`` two."""
    text = str(limit)
    return max(1, math.ceil(float(text[:-1]) / 1000 if text.endswith("m") else float(text)))


def slot_owners(shares: Mapping[str, int]) -> list[str]:
    """The owner of each of the twenty slots; shares are multiples of 5 that add up to 100
    (or there are none).
    """
    if any(share % 5 for share in shares.values()):
        what, why = "a share of the traffic is not a multiple of 5 %", f"the router has {SLOTS} slots: {dict(shares)}"
        raise Refused(Finding("rollout.share-too-fine", what, why, "use multiples of 5 in rollout.steps"))
    return [owner for owner, share in shares.items() for _ in range(share * SLOTS // 100)]
