"""The spec."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from pydantic import ConfigDict, model_validator

from model_delivery.base import Part
from model_delivery.targets import AnyTarget
from model_delivery.targets.protocol import Asked


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

    @model_validator(mode="after")
    def _storage_of_the_place(self) -> Self:
        self.target.check(self.storage)
        return self
