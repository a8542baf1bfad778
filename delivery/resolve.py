"""Resolve: a branch becomes a commit with its files, an engine its content. Nothing is touched yet."""

from __future__ import annotations

from delivery.engines import load_engine
from delivery.release import Lock
from delivery.secrets import read_secret
from delivery.sources import open_source
from delivery.spec import DeliverySpec, ProcessTarget


def resolve_lock(spec: DeliverySpec) -> Lock:
    """The lock of ``spec`` as of now. Raises what the source raises: Retryable when a hub is overloaded, Refused when it says no."""
    token = getattr(spec.model, "token", None)
    snapshot = open_source(spec.model).resolve(None if token is None else read_secret(token))
    engine = load_engine(spec.target.engine) if isinstance(spec.target, ProcessTarget) else None
    image = None if isinstance(spec.target, ProcessTarget) else spec.target.image
    return Lock(snapshot=snapshot, engine=engine, image=image)
