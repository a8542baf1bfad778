"""What every target has: a spec class, a key, payloads, and the answers that the house
asks of it; and what a spec asks of whatever target it names.

All of it is pure; what a place knows is asked of the place that is passed in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from model_delivery.base import NAME, DnsLabel, Duration, Finding, Part, Refused, Secret, SecretRef
from model_delivery.models.listing import hashed, mistral_native, select
from model_delivery.models.native import MISTRAL, TRUST
from model_delivery.models.sources import Model
from model_delivery.values import (
    Address,
    Capabilities,
    Current,
    Desired,
    Gates,
    Kind,
    Lock,
    Observed,
    Payload,
    Readiness,
    Ref,
    Release,
    Resource,
    Rollout,
    Runner,
    Schedule,
    Server,
    Serving,
    Snapshot,
    Start,
    StepState,
    Storage,
    World,
    means,
    option,
)
from model_delivery.values.plain_secrets import of_settings, of_words, plain_secrets

NAMED = "name where the secret is, never the secret itself: {env: NAME}, {file: PATH} or {kube: {name: …, key: …}}"
Get = Callable[[Ref], Observed | None]
UpAt = Callable[[], Address | None]


class Asked(Part):
    """A spec without its target: the model, how it is served, and what it must be able to
    do before it gets traffic.
    """

    api_version: Literal["model-delivery/v1"] = Field(alias="apiVersion")
    name: DnsLabel
    model: Model
    storage: Storage = Storage()
    serving: Serving = Serving()
    runner: Runner = Runner()
    gates: Gates = Gates()
    rollout: Rollout = Rollout()
    approval: Literal["none", "manual"] = "none"
    approval_timeout: Duration = Duration("24h")
    schedule: Schedule | None = None
    concurrency: Literal["wait", "refuse"] = "wait"
    lock: Lock | None = None

    @model_validator(mode="before")
    @classmethod
    def _default_names(cls, given: Any) -> Any:
        """``serving.model_names`` defaults to the delivery's name."""
        match given:
            case {"name": str(name), **others} if re.fullmatch(NAME, name):
                serving = others.get("serving", {})
                if isinstance(serving, dict) and not serving.get("model_names"):
                    return {**given, "serving": {**serving, "model_names": (name,)}}
        return given

    @model_serializer(mode="wrap")
    def _plainly(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What has no lock is written as before there were any."""
        made: dict[str, Any] = dump(self)
        return made if self.lock else {name: value for name, value in made.items() if name != "lock"}

    def faults(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """What a new spec must not say, by its place; what is stored is read as it is."""
        yield from ((("model", *at), why) for at, why in self.model.faults())
        trusts = any(means(option(arg), (TRUST,)) for arg in self.serving.args)
        if trusts and "remote-code" not in self.model.allow:
            yield ("serving", "args"), f"{TRUST} runs the model's own code, which model.allow: [remote-code] must allow"

        if self.approval == "manual" and "recreate" in (self.rollout.strategy, self.rollout.when_full):
            yield ("approval",), "nothing would serve while a person is asked: not with rollout recreate"
        yield from _lock_faults(self.model, self.lock) if self.lock else ()

    def secrets(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """Where a new spec holds a secret itself, and how it is named instead."""
        yield from ((("serving", "env", name), NAMED) for name in of_settings(self.serving.env))
        if of_words(self.serving.args):
            yield ("serving", "args"), "a secret in an argument is shown; name it in serving.env"
        for name, pod in (("serving", self.serving.pod), ("runner", self.runner.pod)):
            if pod and any(plain_secrets(pod.model_dump())):
                yield (name, "pod"), "a secret in a pod's template is shown; name it in serving.env"

    def served(self, snapshot: Snapshot) -> Self:
        """With the engine's arguments that ``snapshot`` and the model's permissions need;
        the user's come after them.
        """
        args = (*(MISTRAL if mistral_native(file.path for file in snapshot.files) else ()),)
        args += (TRUST,) if "remote-code" in self.model.allow and TRUST not in self.serving.args else ()
        serving = self.serving.model_copy(update={"args": (*args, *self.serving.args)})
        return self.model_copy(update={"serving": serving})


def _lock_faults(model: Model, lock: Lock) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Files that the model's source would not be allowed to list."""
    snapshot = lock.snapshot
    if (snapshot.source, snapshot.key) != (model.source, model.key):
        yield ("lock", "snapshot"), f"it is of another model than {model.name}"
    try:
        chosen = hashed(select(snapshot.files, model.include, model.exclude, model.allow))
    except Refused as refused:
        yield from ((("lock", "snapshot", "files"), f"{each.what}: {each.why}") for each in refused.findings)
    else:
        if len(chosen) != len(snapshot.files):
            yield ("lock", "snapshot", "files"), "model.include and model.exclude leave some of them out"


class TargetKey(Part):
    """Which target, and where: what may not change while a delivery is up."""

    place: ClassVar[Literal["host", "cluster"]]
    kind: str
    context: str | None = None
    namespace: str | None = None

    @classmethod
    def told_by(cls, route: Mapping[str, Any]) -> Mapping[str, Any]:  # noqa: ARG003 - a host's says none
        """Its fields that the manifest of a route says, empty where there is none."""
        return {}

    def target(self) -> Target:
        raise NotImplementedError

    def admits(self, asked: TargetKey) -> bool:
        """May a delivery that is up under this key go on under ``asked``?"""
        return self == asked


class TargetSpec(Part):
    """What a spec says of its target. ``files``: fields that name a file or folder."""

    files: ClassVar[tuple[str, ...]] = ()
    keyed: ClassVar[type[TargetKey]]

    if TYPE_CHECKING:

        @property
        def kind(self) -> str: ...

        @property
        def engine(self) -> str | None: ...

        @property
        def image(self) -> str | None: ...

    def key(self) -> TargetKey:
        return self.keyed.model_validate(self.model_dump(include=set(self.keyed.model_fields)))

    def check(self, storage: Storage) -> None:
        """ValueError where a place of this target has no such storage."""


@dataclass(frozen=True)
class StepRun:
    """One try of a step: its name and input are its identity, with the stage, the attempt
    and the try. ``release`` and ``payload``: what it is for; ``runner``: the image that
    runs it.
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


@dataclass(frozen=True)
class Adoption:
    """What can come under a spec: the release's payload, its replicas, and how it differs
    from what the spec would make of it.
    """

    what: str
    payload: Payload
    replicas: int
    differs: tuple[str, ...]


class Site(Protocol):
    """What a target's preflight asks of the place."""

    def look_up(self, path: str) -> dict[str, Any] | None:
        """The answer of a cluster's API at ``path``; None: there is no such thing."""

    def rights(self) -> Sequence[Mapping[str, Any]] | None:
        """The rules that hold for us in the namespace; None: nobody can say."""

    def own_image(self) -> str | None: ...

    def listener(self, port: int) -> str: ...

    def secret(self, ref: SecretRef) -> Secret: ...


class Target(Protocol):
    """What is served, as values. ``kinds``: of the objects that no other target has;
    ``adopts``: can an object of the first of them come under a spec?
    """

    spec: ClassVar[type[TargetSpec]]
    payloads: ClassVar[tuple[type[Payload], ...]]
    kinds: ClassVar[tuple[Kind, ...]]
    adopts: ClassVar[bool] = False
    key: TargetKey

    @property
    def can(self) -> Capabilities: ...

    def address(self, name: str) -> Address:
        """Where clients will find the service."""

    def root(self, storage: Storage) -> str | None:
        """The store's folder as steps see it; None: the state folder."""

    def main(self, delivery: str, release: Release) -> Ref:
        """The object that says most of a release."""

    def keeper(self, delivery: str, release: Release) -> Ref | None:
        """The object that keeps a copy of a release's books, so that whoever deletes ours
        loses nothing.
        """
        return None

    def payload(self, asked: Asked, lock: Lock) -> Payload:
        """Rendered once per release, then frozen in its object."""

    def storage(self, name: str, lock: Lock, storage: Storage) -> tuple[Resource, ...]: ...

    def compose(self, want: Desired) -> tuple[Resource, ...]:
        """Everything for ``want``: releases first, then the route."""

    def step(self, run: StepRun) -> tuple[Resource, ...]:
        """What runs it comes last; what that needs, before."""

    def step_state(self, ref: Ref, world: World) -> StepState:
        """Failed when it cannot start, or was ended from outside."""

    def readiness(self, release: Release, world: World) -> Readiness: ...

    def start(self, release: Release, world: World) -> Start | None:
        """How far its engines' start is, or was."""
        return None

    def servers(self, release: Release, world: World) -> tuple[Server, ...]:
        """Its engines that are ready, each by itself."""

    def routed(self, want: Desired, world: World) -> Readiness:
        """Has the traffic really moved?"""

    def way(self, route: Resource, seen: Observed | None) -> Iterator[tuple[Resource, float]]:
        """The forms by which the route, as it is ``seen``, comes to be ``route``. Each is
        ``taken`` before the next is written, and stays for some seconds more.
        """
        yield from ()

    def taken(self, route: Resource, world: World) -> Readiness:
        """Does whoever directs the traffic know the route in this form?"""
        return Current("")

    def preflight(self, asked: Asked, secrets: Mapping[str, SecretRef], place: Site, up_at: UpAt) -> Iterator[Finding]:
        """Every reason against ``asked`` that is known before anything is touched.
        ``secrets``: by the spec's field; ``up_at``: where the delivery is up already.
        """

    def adopt(self, asked: Asked, lock: Lock, named: str, get: Get) -> Adoption:
        """The object ``named``, of the first kind, as it runs now, as a release.
        Refused with every reason why it cannot come under ``asked``. ``get`` reads an
        object of the place.
        """
        raise nothing_to_adopt(self.key.kind)

    def asked_at(self, release: Release, world: World, seen: Observed) -> Readiness:
        """Where an engine that is to be adopted can be asked, while nothing is ours yet;
        ``seen``: its object.
        """
        raise nothing_to_adopt(self.key.kind)


def nothing_to_adopt(kind: str) -> Refused:
    why = "what runs on a host is the process of the run that started it"
    return Refused(Finding("adopt.no-such-target", f"nothing can be adopted on target {kind}", why, "use `deliver up`"))


def not_yet(kind: str, wanted: Mapping[str, bool]) -> Iterator[Finding]:
    """What is asked for, and this target has not."""
    why = f"target {kind} of this version cannot do it"
    for what, asked in wanted.items():
        if asked:
            yield Finding("target.not-there-yet", f"{what} is not there yet", why, f"remove {what} from the spec")
