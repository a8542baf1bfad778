"""The spec."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from pydantic import ConfigDict, model_validator

from model_delivery.base import Part
from model_delivery.targets import AnyTarget
from model_delivery.targets.process import GPU
from model_delivery.targets.protocol import Asked
from model_delivery.values import ranks


class DeliverySpec(Asked):
    """A model, where and how it is served, and what it must do before it gets traffic."""

    target: AnyTarget

    model_config = ConfigDict(**Part.model_config, serialize_by_alias=True)

    def faults(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        yield from super().faults()
        if self.lock and self.lock.image != self.target.image:
            yield ("lock", "image"), f"it is not target.image, {self.target.image}"
        if self.lock and (self.lock.engine is None) != (self.target.engine is None):
            yield ("lock", "engine"), "it is there where target.engine is, and nowhere else"
        stated, spread = self.serving.resources.limits.get(GPU), ranks(self.serving.args)
        if self.target.keyed.place == "host" and stated and spread and stated != spread:
            why = f"{GPU} is {stated}, but serving.args spread the model over {spread} (the product of the sizes of its"
            yield ("serving", "resources", "limits"), f"{why} parallelism): let them agree, or leave {GPU} out"

    @model_validator(mode="after")
    def _storage_of_the_place(self) -> Self:
        self.target.check(self.storage)
        return self
