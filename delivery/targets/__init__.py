"""Targets say what is served: pure, no I/O. One class a kind, chosen by one exhaustive match."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from delivery.findings import Finding, Refused
from delivery.release import Capabilities, Desired, Lock, Payload, Release
from delivery.resources import Resource, World
from delivery.spec import DeploymentTarget, KServeTarget, ProcessTarget, Serving, Storage, T9kTarget
from delivery.spec import Target as TargetSpec


@dataclass(frozen=True)
class Current:
    """Ready; ``endpoint`` is the base URL of this release (or of the route)."""

    endpoint: str


@dataclass(frozen=True)
class InProgress:
    why: str


@dataclass(frozen=True)
class Failed:
    """It will not become ready by waiting. ``retryable``: starting it again may help."""

    finding: Finding
    retryable: bool = False


Readiness = Current | InProgress | Failed


@dataclass(frozen=True)
class StepRun:
    """One try of a step: its name and input are its identity, with the stage, the attempt and the try."""

    delivery: str
    name: str
    input: str
    stage: str
    attempt: int
    try_: int


class Target(Protocol):
    """What is served, as values."""

    @property
    def can(self) -> Capabilities: ...

    def payload(self, name: str, lock: Lock, serving: Serving, storage: Storage) -> Payload:
        """Rendered once per release, then frozen in its object."""

    def storage(self, name: str, lock: Lock, storage: Storage) -> tuple[Resource, ...]: ...

    def compose(self, want: Desired) -> tuple[Resource, ...]:
        """Everything for ``want``: releases first, then the route."""

    def step(self, run: StepRun) -> tuple[Resource, ...]: ...

    def readiness(self, release: Release, world: World) -> Readiness: ...

    def routed(self, want: Desired, world: World) -> Readiness:
        """Has the traffic really moved?"""


def choose(target: TargetSpec) -> Target:
    """The target of a spec. Refused (exit code 3) for those that are not there yet."""
    match target:
        case ProcessTarget():
            from delivery.targets.process import Process

            return Process()
        case T9kTarget() | KServeTarget() | DeploymentTarget():
            what = f"target {target.kind} is not there yet"
            raise Refused(Finding(what, "this version delivers to one host", "use target: {kind: process, engine: …, port: …}"))
