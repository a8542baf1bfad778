"""vLLM as a process on this host, behind a router on the stable port."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from model_delivery.base.findings import Finding, Refused
from model_delivery.base.units import Size
from model_delivery.diagnosis.engine_log import diagnose, is_retryable
from model_delivery.models.store import folder_name
from model_delivery.targets import StepRun
from model_delivery.values.kind import Kind
from model_delivery.values.readiness import Current, Failed, InProgress, Readiness
from model_delivery.values.release import Address, Capabilities, Desired, Lock, Payload, Release
from model_delivery.values.resources import Ref, Resource, World, digest
from model_delivery.values.serving import Serving, Storage

ENGINE, ROUTER, SLOT = Kind("Engine"), Kind("Router"), Kind("Slot")
STEP, FOLDER, ENVIRONMENT = Kind("Step"), Kind("Folder"), Kind("Environment")
SLOTS = 20


class Process:
    """Engines are resources of kind Engine, the router one Router and twenty Slots: a slot is 5 % of the traffic."""

    can = Capabilities(dark_first=True, weights="slots")

    def address(self, name: str, port: int) -> Address:
        return Address("127.0.0.1", port)

    def root(self, storage: Storage) -> str | None:
        return storage.path

    def main(self, delivery: str, release: str) -> Ref:
        return engine_ref(release)

    def payload(self, name: str, lock: Lock, serving: Serving, storage: Storage) -> Payload:
        if lock.engine is None:
            raise Refused(Finding("todo", "no engine", "a process needs one", "name it in target.engine"))
        limits = dict(serving.resources.limits)
        gpus, cpus = int(limits.get("nvidia.com/gpu", 0)), whole_cpus(limits.get("cpu", 1))
        memory = Size(str(limits["memory"])).bytes if "memory" in limits else lock.engine.memory_bytes
        plain = {key: value for key, value in serving.env.items() if isinstance(value, str)}
        secret = {
            key: value.model_dump(mode="json") for key, value in serving.env.items() if not isinstance(value, str)
        }
        if serving.api_key is not None:
            secret["VLLM_API_KEY"] = serving.api_key.model_dump(mode="json")
        return {
            "engine": lock.engine.model_dump(mode="json"),
            "model": folder_name(lock.snapshot),
            "store": storage.path,
            "names": list(serving.model_names),
            "args": list(serving.args),
            "chat_template": serving.chat_template,
            "env": plain,
            "secret_env": secret,
            "api_key": None if serving.api_key is None else serving.api_key.model_dump(mode="json"),
            "port": "auto",
            "cpus": cpus,
            "gpus": gpus,
            "memory": memory,
        }

    def storage(self, name: str, lock: Lock, storage: Storage) -> tuple[Resource, ...]:
        folder = Resource(Ref(FOLDER, "models"), "storage", name, {"path": storage.path})
        if lock.engine is None or lock.engine.environment is None:
            return (folder,)
        environment = Resource(
            Ref(ENVIRONMENT, lock.engine.name), "storage", name, {"engine": lock.engine.model_dump(mode="json")}
        )
        return (folder, environment)

    def compose(self, want: Desired) -> tuple[Resource, ...]:
        engines = [Resource(engine_ref(r.id), "release", want.delivery, r.payload, r.id) for r in want.releases]
        if want.address is None:
            return tuple(engines)
        route = [
            Resource(
                Ref(ROUTER, "router"), "route", want.delivery, {"host": want.address.host, "port": want.address.port}
            )
        ]
        route += [
            Resource(Ref(SLOT, f"{n:02}"), "route", want.delivery, {"release": owner})
            for n, owner in enumerate(slot_owners(want.shares))
        ]
        return tuple(engines + route)

    def step(self, run: StepRun) -> tuple[Resource, ...]:
        name = f"{run.name}-{digest([run.input, run.stage, run.attempt, run.try_])}"
        return (Resource(Ref(STEP, name), "step", run.delivery, {"step": run.name, "input": run.input}),)

    def step_state(self, ref: Ref, world: World) -> Readiness:
        return Current("ended" if ref in world.objects and world.objects[ref].status["finished"] else "started")

    def readiness(self, release: Release, world: World) -> Readiness:
        seen = world.objects.get(engine_ref(release.id))
        if seen is None or seen.resource.spec != release.payload:
            return InProgress("the engine is not started")
        status = seen.status
        if not status["alive"]:
            finding = diagnose(status["log_tail"], status["exit_code"])
            return Failed(with_log(finding, status), is_retryable(status["log_tail"], status["exit_code"]))
        if status["healthy"]:
            return Current(f"http://127.0.0.1:{status['port']}")
        return InProgress(last_line(status["log_tail"]) or "the engine is starting")

    def routed(self, want: Desired, world: World) -> Readiness:
        if want.address is None:
            return Current("")
        router = world.objects.get(Ref(ROUTER, "router"))
        if router is None:
            return InProgress("no router")
        if not router.status["alive"]:
            finding = Finding(
                "todo", "the router ended", last_line(router.status["log_tail"]), "run again; its log says more"
            )
            return Failed(with_log(finding, router.status))
        late = [
            r.name
            for r, o in world.objects.items()
            if r.kind.name == "Slot" and o.status["written"] != o.status["address"]
        ]
        if late or not router.status["healthy"]:
            return InProgress(f"slots {', '.join(late)} not moved" if late else "the router is starting")
        return Current(want.address.url)


def engine_ref(release: str) -> Ref:
    return Ref(ENGINE, release)


def whole_cpus(limit: float | str) -> int:
    """CPUs are bound whole: ``500m`` is one, ``1500m`` two."""
    text = str(limit)
    return max(1, math.ceil(float(text[:-1]) / 1000 if text.endswith("m") else float(text)))


def slot_owners(shares: Mapping[str, int]) -> list[str]:
    """The owner of each of the twenty slots; shares are multiples of 5 that add up to 100 (or there are none)."""
    if any(share % 5 for share in shares.values()):
        what = "a share of the traffic is not a multiple of 5 %"
        raise Refused(
            Finding(
                "todo", what, f"the router has {SLOTS} slots: {dict(shares)}", "use multiples of 5 in rollout.steps"
            )
        )
    return [owner for owner, share in shares.items() for _ in range(share * SLOTS // 100)]


def with_log(finding: Finding, status: Mapping[str, Any]) -> Finding:
    return Finding("todo", finding.what, finding.why, finding.fix, (*finding.evidence, f"log: {status['log']}"))


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][-160:] if lines else ""
