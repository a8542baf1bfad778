"""Keys of targets from their fields."""

from __future__ import annotations

from pydantic import TypeAdapter

from model_delivery.targets import AnyKey, TargetKey

_KEY: TypeAdapter[TargetKey] = TypeAdapter(AnyKey)


def key(**fields: object) -> TargetKey:
    return _KEY.validate_python(fields)
