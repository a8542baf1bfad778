"""Targets say what is served: pure, no I/O. One class a kind, chosen by one exhaustive match."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from model_delivery.base.findings import Finding, Refused
from model_delivery.targets.key import TargetKey
from model_delivery.targets.spec import DeploymentTarget, KServeTarget, ProcessTarget, T9kTarget
from model_delivery.targets.spec import Target as TargetSpec
from model_delivery.values.kind import Kind
from model_delivery.values.readiness import Readiness
from model_delivery.values.release import Address, Capabilities, Desired, Lock, Payload, Release
from model_delivery.values.resources import Ref, Resource, World
from model_delivery.values.serving import Runner, Serving, Storage


@dataclass(frozen=True)
class StepRun:
    """One try of a step: its name and input are its identity, with the stage, the attempt and the try.

    ``release`` and ``payload``: what it is for; ``runner``: the image that runs it, where it runs in one.
    """

    delivery: str
    name: str
    input: str
    stage: str
    attempt: int
    try_: int
    payload: Payload | None = None
    runner: Runner = field(default_factory=Runner)
    release: str | None = None


class Target(Protocol):
    """What is served, as values."""

    @property
    def can(self) -> Capabilities: ...

    def address(self, name: str, port: int) -> Address:
        """Where clients will find the service; ``port`` is for targets whose user chooses one."""

    def root(self, storage: Storage) -> str | None:
        """The store's folder as steps see it; None: the state folder."""

    def main(self, delivery: str, release: str) -> Ref:
        """The resource whose log is the engine's."""

    def payload(self, name: str, lock: Lock, serving: Serving, storage: Storage) -> Payload:
        """Rendered once per release, then frozen in its object."""

    def storage(self, name: str, lock: Lock, storage: Storage) -> tuple[Resource, ...]: ...

    def compose(self, want: Desired) -> tuple[Resource, ...]:
        """Everything for ``want``: releases first, then the route."""

    def step(self, run: StepRun) -> tuple[Resource, ...]:
        """What runs it comes last; what that needs, before."""

    def step_state(self, ref: Ref, world: World) -> Readiness:
        """Current("started") or Current("ended"); Failed when it cannot start, or was ended from outside."""

    def readiness(self, release: Release, world: World) -> Readiness: ...

    def routed(self, want: Desired, world: World) -> Readiness:
        """Has the traffic really moved?"""


def key_of(target: TargetSpec) -> TargetKey:
    """What of a target may not change while a delivery is up."""
    match target:
        case ProcessTarget():
            return TargetKey(kind=target.kind)
        case T9kTarget():
            return TargetKey(kind=target.kind, context=target.context, namespace=target.namespace, queue=target.queue)
        case KServeTarget() | DeploymentTarget():
            key = TargetKey(kind=target.kind, context=target.context, namespace=target.namespace)
            return key.model_copy(update={"gateway": target.gateway, "hostname": target.hostname})


def choose(target: TargetSpec) -> Target:
    """The target of a spec. Refused (exit code 3) for those that are not there yet."""
    return of_key(key_of(target))


def of_key(key: TargetKey) -> Target:
    """The target of a delivery, by what its record says."""
    match key.kind:
        case "process":
            from model_delivery.targets.process import Process

            return Process()
        case "deployment":
            from model_delivery.targets.deployment import Deployment

            return Deployment(key.namespace or "default", key.gateway, key.hostname)
        case "t9k":
            from model_delivery.targets.t9k import T9k

            return T9k(key.namespace or "default", key.queue)
        case "kserve":
            from model_delivery.targets.kserve import KServe

            return KServe(key.namespace or "default", key.gateway, key.hostname)
    known = "t9k, kserve, deployment, process"
    raise Refused(
        Finding(
            "todo",
            f"there is no target {key.kind}",
            f"this version knows {known}",
            "use the version that made the delivery",
        )
    )


def cluster_kinds() -> tuple[Kind, ...]:
    """What a delivery may have in a namespace, whatever its target."""
    from model_delivery.targets import deployment, kserve, t9k
    from model_delivery.targets.kubernetes.kinds import CONFIG_MAP, HTTP_ROUTE, JOB, SERVICE

    shared = (CONFIG_MAP, SERVICE, JOB, HTTP_ROUTE)
    return (*shared, deployment.DEPLOYMENT, *t9k.KINDS, *kserve.KINDS)
