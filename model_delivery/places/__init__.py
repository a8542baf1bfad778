"""Places do effects: small object stores of what is wanted, with what they see of it.
``put`` and ``delete`` are the only mutations.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

from model_delivery.base import Secret, SecretRef
from model_delivery.values import ANY, Card, Change, Observed, Ref, ReleaseId, Resource, Snapshot, Version, World


class Place(Protocol):
    """Where objects live.

    ``lease_seconds``: how long a lease holds unless it is renewed. ``keeps_files``: what
    a run writes below the state folder is there for the next one. ``elsewhere``: where
    else a delivery that is not here may be, for people.
    """

    @property
    def lease_seconds(self) -> float: ...

    @property
    def keeps_files(self) -> bool: ...

    @property
    def elsewhere(self) -> str: ...

    @property
    def location(self) -> tuple[str | None, str | None]:
        """Context and namespace; of a host none."""

    def put(self, resource: Resource, *, expect: Version = ANY, dry_run: bool = False) -> Change:
        """Make it so. Raises Mismatch when another version than ``expect`` is there,
        Trouble when it cannot be.
        """

    def without(self, delivery: str, releases: Collection[ReleaseId]) -> Place:
        """The place as it will be for a dry run when ``releases`` have gone: they take no
        room.
        """

    def overview(self) -> Place:
        """The place as it is now, for who only looks, at many deliveries: nothing is read
        twice.
        """

    def delete(self, delivery: str, ref: Ref, *, grace: float | None = None) -> Change:
        """Make it gone, or begin its end (then it is in the world until it is gone); a
        process gets ``grace`` seconds after SIGTERM (none: its own setting).
        """

    def world(self, delivery: str) -> World: ...

    def get(self, delivery: str, ref: Ref) -> Observed | None: ...

    def deliveries(self) -> tuple[str, ...]: ...

    def log(self, delivery: str, ref: Ref, *, follow: bool = True) -> Iterator[bytes]:
        """Lines of what a step wrote; with ``follow`` until it has ended."""

    def engine_log(self, delivery: str, release: str, *, follow: bool = False) -> Iterator[bytes]:
        """Lines of the log of a release's engine, of the newest where there were several;
        with ``follow`` until it has ended. BadInput where it is known that there is none.
        """

    def hint(self, delivery: str, timeout: float) -> None:
        """Return when it is time to look again: something may have changed; after
        ``timeout`` seconds at the latest.
        """

    def secret(self, ref: SecretRef) -> Secret: ...

    def has_model(self, snapshot: Snapshot, root: str | None) -> bool | None:
        """Is its whole folder in the store at ``root`` (none: the state folder)? None:
        that cannot be seen from here.
        """

    def cards(self, delivery: str) -> Mapping[ReleaseId, tuple[Card, ...]]:
        """The GPUs that each running release has, where that is known here."""

    def listener(self, port: int) -> str:
        """Who listens there, where clients will look for the service; empty: nobody."""

    def look_up(self, path: str) -> dict[str, Any] | None:
        """What the API says at ``path``; None: there is no such thing. Forbidden
        (Permanent) where we may not see it.
        """

    def rights(self) -> Sequence[Mapping[str, Any]] | None:
        """The rules of what we may do, as an RBAC Role lists them; None: they are not
        fully known.
        """

    def own_image(self) -> str | None:
        """The image of the pod that this runs in; None outside of a cluster."""
