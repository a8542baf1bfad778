"""Which target, and where: what may not change while a delivery is up."""

from __future__ import annotations

from model_delivery.base.part import Part


class TargetKey(Part):
    """What may not change while a delivery is up: ``down`` first."""

    kind: str
    context: str | None = None
    namespace: str | None = None
    gateway: str | None = None
    hostname: str | None = None
    queue: str | None = None
