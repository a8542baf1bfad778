"""A place in memory, and a target with any capabilities: what serves is made, starts,
fails and is routed as a world would.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

from model_delivery.base import Finding, NoRoom, Secret, SecretRef
from model_delivery.models.store.commit import Fetched
from model_delivery.targets.kubernetes.route import way
from model_delivery.targets.process import Process, ProcessKey
from model_delivery.targets.protocol import StepRun
from model_delivery.values import (
    ABSENT,
    ANY,
    Capabilities,
    Card,
    Change,
    Current,
    Desired,
    Ended,
    Failed,
    InProgress,
    Kind,
    Lock,
    Mismatch,
    Observed,
    Phase,
    Readiness,
    Ref,
    Release,
    Resource,
    Server,
    Snapshot,
    Start,
    StepState,
    Storage,
    Version,
    World,
)

ENGINE, ROUTE, JOB = Kind("Engine", foreground=True), Kind("Route"), Kind("Job")
THE_ROUTE = Ref(ROUTE, "route")
BROKEN = Finding("engine.test", "the engine failed")


class Clock:
    """Time passes when somebody waits."""

    def __init__(self) -> None:
        self.time = 1_000_000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


class Target(Process):
    """``together``: one object is the route and holds the releases, as T9k's MLService
    does.
    """

    together: bool

    def __init__(self, can: Capabilities, together: bool) -> None:
        super().__init__(ProcessKey())
        object.__setattr__(self, "can", can)
        object.__setattr__(self, "together", together)

    def storage(self, name: str, lock: Lock, storage: Storage) -> tuple[Resource, ...]:
        return ()

    def compose(self, want: Desired) -> tuple[Resource, ...]:
        shares = want.shares
        if self.together:
            if not want.address or not shares:
                return ()
            spec = {"releases": [[r.id, r.replicas, list(r.payload.args)] for r in want.releases], "traffic": shares}
            return (Resource(THE_ROUTE, "route", want.delivery, spec),)
        engines = tuple(
            Resource(
                Ref(ENGINE, r.id),
                "standby" if r.id in want.asleep else "release",
                want.delivery,
                {"args": [*r.payload.args, r.loader], "replicas": r.replicas, "loader": r.loader, "lap": r.lap},
                r.id,
            )
            for r in want.releases
        )
        if self.weighs:
            shares = {r.id: 0 for r in want.releases} | shares
        return (*engines, Resource(THE_ROUTE, "route", want.delivery, {"traffic": shares})) if want.address else engines

    @property
    def weighs(self) -> bool:
        """Is the route a gateway's?"""
        return self.can.weights == "percent" and not self.together

    def way(self, route: Resource, seen: Observed | None) -> Iterator[tuple[Resource, float]]:
        for refs, seconds in way(refs_of(seen.resource), refs_of(route)) if seen and self.weighs else ():
            yield replace(route, spec={"traffic": {ref["name"]: ref["weight"] for ref in refs}}), seconds

    def taken(self, route: Resource, world: World) -> Readiness:
        seen = world.objects.get(THE_ROUTE)
        return Current("") if seen and seen.status["known"] == seen.version else InProgress("nobody has seen it yet")

    def step(self, run: StepRun) -> tuple[Resource, ...]:
        name = sha256(f"{run.name} {run.input} {run.stage} {run.attempt} {run.try_}".encode()).hexdigest()[:10]
        return (Resource(Ref(JOB, name), "step", run.delivery, {"step": run.name, "input": run.input}),)

    def step_state(self, ref: Ref, world: World) -> StepState:
        return Ended()

    def readiness(self, release: Release, world: World) -> Readiness:
        seen = world.objects.get(THE_ROUTE if self.together else Ref(ENGINE, release.id))
        state = seen.status.get(release.id) if seen else None
        if state == "failed":
            return Failed(BROKEN)
        return Current("") if state == "ready" else InProgress("it starts")

    def start(self, release: Release, world: World) -> Start:
        """With the loader called fast in half the time."""
        seen, now = world.objects.get(Ref(ENGINE, release.id)), world.observed_at
        if not isinstance(self.readiness(release, world), Current):
            return Start(now, {Phase.PROCESS: now})
        began = now - (10 if seen and seen.resource.spec["loader"] == "fast" else 20)
        return Start(began, {Phase.PROCESS: began, Phase.HEALTHY: now})

    def servers(self, release: Release, world: World) -> tuple[Server, ...]:
        """None that could be asked for a token."""
        return ()

    def routed(self, want: Desired, world: World) -> Readiness:
        seen = world.objects.get(THE_ROUTE)
        if want.address is None or not want.shares:
            return Current("")
        if seen is None or weighty(seen.resource) != want.shares:
            return InProgress("the traffic has not moved yet")
        ready = [r for r in want.releases if r.id in want.shares and isinstance(self.readiness(r, world), Current)]
        if not ready:
            return InProgress("nobody of the route is ready")
        return Current(want.address.url)


def refs_of(route: Resource) -> dict[str, dict[str, Any]]:
    return {name: {"name": name, "weight": weight} for name, weight in route.spec["traffic"].items()}


def weighty(route: Resource) -> dict[str, int]:
    """Who has traffic."""
    return {name: weight for name, weight in route.spec["traffic"].items() if weight}


@dataclass
class Place:
    """``room``: how many releases fit. ``failing``: releases by their label (an argument)
    that never start. ``broken``: releases that cannot run any more. ``wait``: what a
    waiting run does.
    """

    clock: Clock
    together: bool
    room: int
    failing: Callable[[Sequence[str]], bool]
    wait: Callable[[], None]
    alive: Callable[[str], bool]
    broken: set[str] = field(default_factory=set)
    objects: dict[Ref, tuple[Resource, Version]] = field(default_factory=dict)
    status: dict[Ref, dict[str, str]] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)
    labels: dict[str, Sequence[str]] = field(default_factory=dict)
    leaving: frozenset[str] = frozenset()
    known: Version = ""
    lease_seconds: float = 60.0
    keeps_files: bool = True
    elsewhere: str = ""
    _versions: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def put(self, resource: Resource, *, expect: Version = ANY, dry_run: bool = False) -> Change:
        ref = resource.ref
        old = self.objects.get(ref)
        if expect not in (ANY, old[1] if old else ABSENT):
            raise Mismatch(ref)
        resource = Resource(
            ref, resource.role, resource.delivery, json.loads(json.dumps(dict(resource.spec))), resource.release
        )
        if old is not None and old[0] == resource and "failed" not in self.status.get(ref, {}).values():
            return Change(ref, "unchanged", version=old[1])
        new = self._releases(resource) - (self._releases(old[0]) if old else set())
        if len(self.running() - self.leaving - self._leaving(resource) | new) > self.room and new:
            raise NoRoom(Finding("place.test", "no room"))
        if dry_run:
            return Change(ref, "updated" if old else "created")
        version = str(next(self._versions))
        self.objects[ref] = (resource, version)
        for release in new or ({ref.name} if ref.kind == ENGINE and resource.role == "release" else set()):
            self.starts[release] = self.starts.get(release, 0) + 1
        another = old is not None and old[0].spec.get("lap") != resource.spec.get("lap") and resource.spec.get("lap")
        states = {} if another else self.status.get(ref, {})
        kept = {release: states.get(release, "starting") for release in self._releases(resource)}
        self.status[ref] = {release: "starting" if state == "failed" else state for release, state in kept.items()}
        return Change(ref, "updated" if old else "created", version=version)

    def _releases(self, resource: Resource) -> set[str]:
        """Those that hold a card."""
        if resource.ref.kind == ENGINE:
            self.labels[resource.ref.name] = resource.spec["args"]
            return {resource.ref.name} if resource.role == "release" else set()
        self.labels |= {name: args for name, _, args in resource.spec.get("releases", ())}
        return {name for name, *_ in resource.spec.get("releases", ())}

    def _leaving(self, resource: Resource) -> set[str]:
        old = self.objects.get(resource.ref)
        return (self._releases(old[0]) - self._releases(resource)) if old and self.together else set()

    def running(self) -> set[str]:
        return {release for resource, _ in self.objects.values() for release in self._releases(resource)}

    def asleep(self) -> set[str]:
        return {resource.ref.name for resource, _ in self.objects.values() if resource.role == "standby"}

    def without(self, delivery: str, releases: Collection[str]) -> Place:
        view = copy.copy(self)
        view.leaving = frozenset(releases)
        return view

    def overview(self) -> Place:
        return self

    def delete(self, delivery: str, ref: Ref, *, grace: float | None = None) -> Change:
        self.status.pop(ref, None)
        return Change(ref, "deleted" if self.objects.pop(ref, None) else "absent")

    def world(self, delivery: str) -> World:
        return World(delivery, {ref: self._observed(ref) for ref in self.objects}, self.clock.time)

    def get(self, delivery: str, ref: Ref) -> Observed | None:
        return self._observed(ref) if ref in self.objects else None

    def _observed(self, ref: Ref) -> Observed:
        resource, version = self.objects[ref]
        status: Mapping[str, Any] = self.status.get(ref, {})
        if ref.kind == JOB:
            status = {"finished": True}
        if ref == THE_ROUTE:
            status = {**status, "known": self.known}
        if ref.kind.name == "Lease":
            status = {} if self.alive(resource.spec["holder"]) else {"alive": False}  # as in a cluster: from afar
        return Observed(resource, version, status)

    def deliveries(self) -> tuple[str, ...]:
        return ("m",)

    def log(self, delivery: str, ref: Ref, *, follow: bool = True) -> Iterator[bytes]:
        text = Fetched(path="/", files=1, bytes=1, fetched_bytes=1, seconds=0, origins={}).model_dump_json()
        yield json.dumps({"result": text, "length": len(text), "sha256": sha256(text.encode()).hexdigest()}).encode()

    def engine_log(self, delivery: str, release: str, *, follow: bool = False) -> Iterator[bytes]:
        yield b""

    def hint(self, delivery: str, timeout: float) -> None:
        """Controllers work, time passes, others act."""
        self.tick()
        self.clock.sleep(min(timeout, 20.0))
        self.wait()

    def tick(self) -> None:
        self.known = self.objects[THE_ROUTE][1] if THE_ROUTE in self.objects else ""
        for states in self.status.values():
            for release in states:
                dead = release in self.broken or self.failing(self.labels.get(release, ()))
                states[release] = "failed" if dead else "ready"

    @property
    def location(self) -> tuple[str | None, str | None]:
        return None, None

    def secret(self, ref: SecretRef) -> Secret:
        return Secret("x")

    def has_model(self, snapshot: Snapshot, root: str | None) -> bool | None:
        return None

    def cards(self, delivery: str) -> dict[str, tuple[Card, ...]]:
        return {}

    def listener(self, port: int) -> str:
        return ""

    def look_up(self, path: str) -> dict[str, Any] | None:
        return None

    def rights(self) -> None:
        return None

    def own_image(self) -> str | None:
        return None
