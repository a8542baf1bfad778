"""A release, and the values of ``Desired`` that everything else is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from model_delivery.values.engine import Engine
from model_delivery.values.snapshot import Snapshot

ReleaseId = str
Payload = Mapping[str, Any]


class Lock(BaseModel):
    """All that was resolved before anything was touched: the model's commit with its files, and the engine that will serve it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    snapshot: Snapshot
    engine: Engine | None = None
    image: str | None = None


class AddressKey(BaseModel):
    """Where clients find the service, in words that survive a crash."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    port: int


@dataclass(frozen=True)
class Release:
    """``id`` is the digest of the payload; ``replicas`` is not part of it."""

    id: ReleaseId
    payload: Payload
    replicas: int = 1

    @property
    def adopted(self) -> Mapping[str, Any] | None:
        """Of a release that somebody made by hand: the object's kind, name and uid, its pods, port and folder. None: it was made here."""
        said: Mapping[str, Any] | None = self.payload.get("adopted")
        return said


@dataclass(frozen=True)
class Address:
    """Where clients find the service, whatever release serves it."""

    host: str
    port: int

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@dataclass(frozen=True)
class Desired:
    """Which releases run, and who gets which share of the traffic (percent; empty: nobody). No address: no route."""

    delivery: str
    releases: tuple[Release, ...] = ()
    traffic: Mapping[ReleaseId, int] | None = None
    address: Address | None = None

    @property
    def shares(self) -> dict[ReleaseId, int]:
        return dict(self.traffic or {})


@dataclass(frozen=True)
class Capabilities:
    """``dark_first``: a first release can run without traffic. ``weights``: how finely traffic divides."""

    dark_first: bool
    weights: Literal["none", "percent", "slots"]
