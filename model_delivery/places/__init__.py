"""Places do effects: small object stores of what is wanted, with what they see of it. ``put`` and ``delete`` are the only mutations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from model_delivery.base.secrets import Secret, SecretRef
from model_delivery.values.resources import ANY, Change, Observed, Ref, Resource, Version, World


class Place(Protocol):
    """Where objects live. ``lease_seconds``: how long a lease holds unless it is renewed."""

    @property
    def lease_seconds(self) -> float: ...

    def put(self, resource: Resource, *, expect: Version = ANY, dry_run: bool = False) -> Change:
        """Make it so. Raises Mismatch when another version than ``expect`` is there, Trouble when it cannot be."""

    def delete(self, delivery: str, ref: Ref, *, grace: float | None = None) -> Change:
        """Make it gone, or begin its end (then it is in the world until it is gone); a process gets ``grace`` seconds after SIGTERM (none: its own setting)."""

    def world(self, delivery: str) -> World: ...

    def get(self, delivery: str, ref: Ref) -> Observed | None: ...

    def deliveries(self) -> tuple[str, ...]: ...

    def log(self, delivery: str, ref: Ref, *, follow: bool = True) -> Iterator[bytes]:
        """Lines of what it wrote; with ``follow`` until it has ended."""

    def hint(self, delivery: str, timeout: float) -> None:
        """Return when it is time to look again: something may have changed; after ``timeout`` seconds at the latest."""

    def secret(self, ref: SecretRef) -> Secret: ...
