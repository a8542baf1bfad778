"""Targets say what is served: pure, no I/O. One room a target; ``ROOMS`` is where one is
registered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Discriminator, Field, Tag

from model_delivery.targets.deployment import Deployment
from model_delivery.targets.kserve import KServe
from model_delivery.targets.kubernetes.kinds import SHARED
from model_delivery.targets.process import Process
from model_delivery.targets.protocol import Adoption, Site, StepRun, Target, TargetKey, TargetSpec
from model_delivery.targets.t9k import T9k
from model_delivery.values import Kind, Payload

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
]  # fmt: skip

ROOMS: tuple[type[Target], ...] = (Process, T9k, KServe, Deployment)


def cluster_kinds() -> tuple[Kind, ...]:
    """What a delivery may have in a namespace, whatever its target."""
    return (*SHARED, *(kind for room in ROOMS for kind in room.kinds if kind.plural))


def _class_of(payload: Any) -> str | None:
    if isinstance(payload, Payload):
        return type(payload).__name__
    fitting = (
        found for room in ROOMS for found in room.payloads if isinstance(payload, Mapping) and found.fits(payload)
    )
    return next((found.__name__ for found in fitting), None)


_SPECS, _KEYS = tuple(room.spec for room in ROOMS), tuple(room.spec.keyed for room in ROOMS)
_PAYLOADS = tuple(Annotated[found, Tag(found.__name__)] for room in ROOMS for found in room.payloads)
if TYPE_CHECKING:
    AnyTarget = TargetSpec
    AnyKey = TargetKey
    AnyPayload = Payload
else:
    AnyTarget = Annotated[Union[_SPECS], Field(discriminator="kind")]  # noqa: UP007
    AnyKey = Annotated[Union[_KEYS], Field(discriminator="kind")]  # noqa: UP007
    AnyPayload = Annotated[Union[_PAYLOADS], Discriminator(_class_of)]  # noqa: UP007
