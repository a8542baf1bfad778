"""The spec."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from pydantic import ConfigDict, model_validator

from model_delivery.base import Part
from model_delivery.targets import AnyTarget
from model_delivery.targets.process import GPU
from model_delivery.targets.protocol import Asked
from model_delivery.values import means, option, ranks
from model_delivery.values.engine import DEFAULT_LOADER

LOADS = ("--load-format", "--safetensors-load-strategy", "--model-loader-extra-config")


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
        yield from self._loader_faults()

    def _loader_faults(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        locked, races = self.lock and self.lock.loader, self.serving.loader == "race"
        if races and self.target.keyed.place != "host":
            yield ("serving", "loader"), f"loaders race on a host only, not on target {self.target.kind}: leave it out"
        if races and (own := [name for arg in self.serving.args if means(name := option(arg), LOADS)]):
            yield ("serving", "loader"), f"race chooses the loader, and so does {own[0]} in serving.args: leave one out"
        known = (self.lock.engine.loaders if self.lock and self.lock.engine else None) or {}
        if locked and not (races and locked in (DEFAULT_LOADER, *known)):
            why = f"must be {DEFAULT_LOADER} or one of lock.engine.loaders" if races else "serving.loader is not race"
            yield ("lock", "loader"), why

    @model_validator(mode="after")
    def _storage_of_the_place(self) -> Self:
        self.target.check(self.storage)
        return self
