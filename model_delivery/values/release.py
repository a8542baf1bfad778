"""A release, and the values of ``Desired`` that everything else is made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

from model_delivery.base import Host, KubeKey, KubeSecret, Part, Port, SecretRef
from model_delivery.values.engine import DEFAULT_LOADER, Engine, LoaderName
from model_delivery.values.snapshot import Snapshot

ReleaseId = str


class Lock(Part):
    """All that was resolved before anything was touched: the model's commit with its
    files, and the engine that will serve it. ``loader``: which of the engine's has won,
    where they raced.
    """

    snapshot: Snapshot
    engine: Engine | None = None
    image: str | None = None
    loader: LoaderName | None = None

    @model_serializer(mode="wrap")
    def _plainly(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What has no loader is written as before there were any."""
        made: dict[str, Any] = dump(self)
        return {name: value for name, value in made.items() if name != "loader" or value is not None}


class Payload(Part):
    """All that a release's objects are made from, rendered once, then frozen. Targets
    have classes of their own; what is declared here, the house may ask of any.
    """

    names: tuple[str, ...]
    args: tuple[str, ...]
    api_key: SecretRef | None = None
    chat_template: str | None = None

    if TYPE_CHECKING:

        @property
        def startup_seconds(self) -> float:
            """How long the engine may take to become ready."""
            raise NotImplementedError

    @property
    def secrets(self) -> tuple[SecretRef, ...]:
        """Those that its engine is given."""
        return (*([self.api_key] if self.api_key else []), *_keys(self.content()))

    @property
    def by_hand(self) -> str | None:
        """Of a release that was adopted, the folder of its weights as seen from the
        claim's root; None: it was made here.
        """
        return None

    @property
    def called(self) -> str | None:
        """In an object that holds several releases, where it is not called by its id."""
        return None

    @property
    def uid(self) -> str | None:
        """Of the object that was adopted."""
        return None

    def without_cache(self) -> Payload | None:
        """As it is, but that its engine keeps nothing of what it compiles; None: it keeps
        nothing anyway, or the place leaves that out by itself.
        """
        return None

    @property
    def sleeps(self) -> bool:
        """Can its engine give its cards back, and wake up as it was?"""
        return False

    @property
    def loaders(self) -> tuple[str, ...]:
        """Ways of reading its weights that shall race with the engine's own."""
        return ()

    @classmethod
    def fits(cls, stored: Mapping[str, Any]) -> bool:
        """Was ``stored`` written from this class? By its keys: what is stored names no
        class.
        """
        required = {name for name, field in cls.model_fields.items() if field.is_required()}
        return required <= stored.keys() <= cls.model_fields.keys()

    def content(self) -> dict[str, Any]:
        """As it is stored; its digest is the release's id."""
        return self.model_dump(mode="json")


@dataclass(frozen=True)
class Release:
    """``id`` is the digest of the payload's content; ``replicas`` is not part of it.

    ``copy``: of its books, for the object that keeps one; empty where none does.
    ``loader``: how it reads its weights; ``lap``: the start of a race that it is.
    """

    id: ReleaseId
    payload: Payload
    replicas: int = 1
    copy: str = field(default="", compare=False, repr=False)
    loader: str = field(default=DEFAULT_LOADER, compare=False)
    lap: str = field(default="", compare=False)


@dataclass(frozen=True)
class Address:
    """Where clients find the service, whatever release serves it."""

    host: Host
    port: Port

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@dataclass(frozen=True)
class Desired:
    """Which releases run, and who gets which share of the traffic (percent; empty:
    nobody). No address: no route. ``asleep``: those of them that hold no card meanwhile.
    """

    delivery: str
    releases: tuple[Release, ...] = ()
    traffic: Mapping[ReleaseId, int] | None = None
    address: Address | None = None
    asleep: frozenset[ReleaseId] = frozenset()

    @property
    def awake(self) -> frozenset[ReleaseId]:
        """Those that shall answer."""
        return frozenset(release.id for release in self.releases) - self.asleep

    @property
    def shares(self) -> dict[ReleaseId, int]:
        return dict(self.traffic or {})


@dataclass(frozen=True)
class Capabilities:
    """``dark_first``: a first release can run without traffic. ``weights``: how finely
    traffic divides. ``sleep``: an engine that can may sleep there.
    """

    dark_first: bool
    weights: Literal["none", "percent", "slots"]
    sleep: bool = False


def _keys(thing: Any) -> Iterator[SecretRef]:
    """Of the Secrets that a manifest's variables are read from."""
    if isinstance(thing, Mapping):
        if isinstance(ref := thing.get("secretKeyRef"), Mapping) and ref.get("name") and ref.get("key"):
            yield KubeSecret(kube=KubeKey(name=ref["name"], key=ref["key"]))
        thing = list(thing.values())
    if isinstance(thing, list | tuple):
        for one in thing:
            yield from _keys(one)
