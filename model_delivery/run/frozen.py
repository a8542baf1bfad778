"""What a release was made with, as its own object holds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from model_delivery.base import Duration, Finding, Moment, Part, Permanent, problems
from model_delivery.models.sources import Model
from model_delivery.run.rules import Facts
from model_delivery.targets import AnyPayload
from model_delivery.values import RELEASE, Address, Lock, ReleaseId, Storage, World


class Frozen(Part):
    """The payload it was made with, its lock, and the digest by which a rerun knows it
    again.

    ``address`` is the one that a rollback goes back to after ``down``. ``verified``:
    every file of its weights is as the source lists it.
    """

    payload: AnyPayload
    lock: Lock
    unchanged: str
    model: Model
    storage: Storage
    args: tuple[str, ...]
    startup_timeout: Duration | None = None
    address: Address | None = None
    created: Moment
    verified: bool = True

    @property
    def facts(self) -> Facts:
        return Facts(self.lock.snapshot.commit, self.args, self.unchanged)

    @property
    def startup_seconds(self) -> float:
        """How long it may take to become ready."""
        return self.startup_timeout.seconds if self.startup_timeout else self.payload.startup_seconds

    def dump(self) -> dict[str, Any]:
        """As it is stored: plain JSON."""
        return {**self.model_dump(mode="json"), "payload": self.payload.content()}


def load(release: ReleaseId, stored: Mapping[str, Any]) -> Frozen:
    """Read a stored release back, an older version's too. Permanent where this version
    cannot read it.
    """
    try:
        return Frozen.model_validate(stored)
    except ValidationError as error:
        why = problems(error)[0]
        fix = "use the version of Model Delivery that wrote it, or a newer one"
        raise Permanent(Finding("release.unreadable", f"release {release} cannot be read", why, fix)) from None


def releases(world: World) -> dict[ReleaseId, Frozen]:
    """Every release that the delivery still knows."""
    stored = {ref.name: seen.resource.spec for ref, seen in world.objects.items() if ref.kind == RELEASE}
    return {name: load(name, spec) for name, spec in stored.items()}
