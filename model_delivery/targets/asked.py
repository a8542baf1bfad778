"""What a spec asks of whatever target it names."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from model_delivery.base import DnsLabel, Part
from model_delivery.models.sources import Model
from model_delivery.values import Gates, Rollout, Runner, Schedule, Serving, Storage


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
    schedule: Schedule | None = None
    concurrency: Literal["wait", "refuse"] = "wait"

    @model_validator(mode="before")
    @classmethod
    def _default_names(cls, given: Any) -> Any:
        """``serving.model_names`` defaults to the delivery's name."""
        match given:
            case {"name": str(name), **others}:
                serving = others.get("serving", {})
                if isinstance(serving, dict) and not serving.get("model_names"):
                    return {**given, "serving": {**serving, "model_names": (name,)}}
        return given
