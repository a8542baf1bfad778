"""The spec."""

from __future__ import annotations

from pydantic import ConfigDict, model_validator

from model_delivery.base.part import Part
from model_delivery.targets.asked import Asked
from model_delivery.targets.spec import ProcessTarget, Target


class DeliverySpec(Asked):
    """A model, where and how it is served, and what it must do before it gets traffic."""

    target: Target

    model_config = ConfigDict(**Part.model_config, serialize_by_alias=True)

    @model_validator(mode="after")
    def _storage_of_the_place(self) -> DeliverySpec:
        if isinstance(self.target, ProcessTarget) and self.storage.claim is not None:
            raise ValueError("storage.claim: a host has no claims; use storage: {path: DIR} or leave it out")
        return self
