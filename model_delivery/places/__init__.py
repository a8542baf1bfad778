"""Places do effects: small object stores of what is wanted, with what they see of it. ``put`` and ``delete`` are the only mutations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

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

    def engine_log(self, delivery: str, release: str, *, follow: bool) -> Iterator[bytes]:
        """The engine's log of a release."""

    def look_up(self, path: str) -> dict[str, Any] | None:
        """The answer of a cluster's API at ``path``; None: there is no such thing."""

    def rights(self) -> Sequence[Mapping[str, Any]] | None:
        """The rules that hold for us in the namespace; None: nobody can say."""

    def own_image(self) -> str | None: ...

    def listening(self, port: int) -> bool: ...
