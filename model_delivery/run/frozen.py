"""What a release was made with, as its own object holds it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from model_delivery.base.units import Duration
from model_delivery.models.sources.model import Model
from model_delivery.targets import AnyPayload
from model_delivery.values.release import Address, Lock
from model_delivery.values.serving import Storage


class Frozen(BaseModel):
    """A release's own object: the payload it was made with, its lock, and the digest by which a rerun knows it again.

    ``address`` is the one that a rollback goes back to after ``down``. ``verified``: every file of its weights is as the source lists it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    payload: AnyPayload
    lock: Lock
    unchanged: str
    model: Model
    storage: Storage
    args: tuple[str, ...]
    startup_timeout: Duration | None = None
    address: Address | None = None
    created: float
    verified: bool = True
