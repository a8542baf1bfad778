"""Targets say what is served: pure, no I/O. One room a target; ``ROOMS`` is where one is
registered.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import BeforeValidator, Discriminator, Field, Tag

from model_delivery.targets.deployment import Deployment
from model_delivery.targets.kserve import KServe
from model_delivery.targets.kubernetes.kinds import SHARED
from model_delivery.targets.process import Process
from model_delivery.targets.protocol import Adoption, Site, StepRun, Target, TargetKey, TargetSpec
from model_delivery.targets.t9k import T9k
from model_delivery.values import RUNS, Kind, Payload, World

__all__ = [
    "ROOMS",
    "Adoption",
    "AnyKey",
    "AnyPayload",
    "AnyTarget",
    "Site",
    "StepRun",
    "Target",
    "TargetKey",
    "TargetSpec",
    "cluster_kinds",
    "standing",
]  # fmt: skip

ROOMS: tuple[type[Target], ...] = (Process, T9k, KServe, Deployment)


def cluster_kinds() -> tuple[Kind, ...]:
    """What a delivery may have in a namespace, whatever its target."""
    return (*SHARED, *(kind for room in ROOMS for kind in room.kinds if kind.plural))


def standing(world: World, context: str | None, namespace: str | None) -> TargetKey | None:
    """The key of the target whose objects stand in ``world``; None where none does."""
    ours = [seen.resource for seen in world.objects.values() if seen.resource.role in RUNS]
    route = next((resource.spec for resource in ours if resource.role == "route"), {})
    kinds = {resource.ref.kind for resource in ours}
    found = (room.spec.keyed for room in ROOMS if kinds & set(room.kinds))
    where = {"context": context, "namespace": namespace}
    return next((key.model_validate({**where, **key.told_by(route)}) for key in found), None)


def _class_of(payload: Any) -> str | None:
    if isinstance(payload, Payload):
        return type(payload).__name__
    return next((name for name, fitting in _PAYLOADS.items() if fitting.fits(payload)), None)


def _said(key: Any) -> Any:
    """An older version's key had the fields of all targets, null where they said
    nothing.
    """
    return {name: value for name, value in key.items() if value is not None} if isinstance(key, dict) else key


_PAYLOADS = {payload.__name__: payload for room in ROOMS for payload in room.payloads}
if TYPE_CHECKING:
    AnyTarget = TargetSpec
    AnyKey = TargetKey
    AnyPayload = Payload
else:

    def _any(classes: Iterable[Any], *how: Any) -> Any:
        return Annotated[(Union[tuple(classes)], *how)]  # noqa: UP007

    AnyTarget = _any((room.spec for room in ROOMS), Field(discriminator="kind"))
    AnyKey = _any((room.spec.keyed for room in ROOMS), Field(discriminator="kind"), BeforeValidator(_said))
    AnyPayload = _any((Annotated[found, Tag(name)] for name, found in _PAYLOADS.items()), Discriminator(_class_of))
