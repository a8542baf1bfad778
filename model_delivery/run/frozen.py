"""What a release was made with, as its own object holds it."""

from __future__ import annotations

import json
import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from model_delivery.base import Duration, Finding, Moment, Object, Part, Permanent, problems
from model_delivery.models.sources import Model
from model_delivery.run.rules import Facts
from model_delivery.targets import AnyPayload
from model_delivery.values import RELEASE, Address, Lock, Release, ReleaseId, Resource, Storage, World
from model_delivery.values.resources import difference
from model_delivery.values.serving import by_option

COPY = "model-delivery/release-"  # the annotation, and the release's id
MOST = 200_000  # characters: an object's annotations have 256 KiB together
LARGEST = 8 << 20  # bytes of one that is read


class Frozen(Part):
    """The payload it was made with, its lock, and the digest by which a rerun knows it
    again.

    ``spec``: as it was asked for, to make it again elsewhere. ``mirrored``: the release's
    own object keeps a copy. ``address`` is the one that a rollback goes back to after
    ``down``. ``verified``: every file of its weights is as the source lists it.
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
    mirrored: bool = False
    spec: Object | None = None

    def with_loader(self, loader: str) -> Frozen:
        """As it is, but that all its starts are with ``loader``."""
        return self.model_copy(update={"lock": self.lock.model_copy(update={"loader": loader})})

    @property
    def facts(self) -> Facts:
        return Facts(self.lock.snapshot.commit, self.args, self.unchanged)

    @property
    def startup_seconds(self) -> float:
        """How long it may take to become ready."""
        return self.startup_timeout.seconds if self.startup_timeout else self.payload.startup_seconds

    def dump(self) -> dict[str, Any]:
        """As it is stored: plain JSON."""
        kept = self.model_dump(mode="json", exclude=None if self.spec else {"spec"})
        return {**kept, "payload": self.payload.content()}


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


def differences(old: Frozen, new: Frozen) -> tuple[str, ...]:
    """Lines ``--ttft: "40" → "50"``: in what a release differs from another."""
    return tuple(difference(_in_parts(old), _in_parts(new)))


def _in_parts(frozen: Frozen) -> dict[str, Any]:
    snapshot, content = frozen.lock.snapshot, _without_args(frozen.payload.content())
    model = {"model": f"{snapshot.source} {snapshot.key} @ {snapshot.commit[:12]}"}
    return {**model, "image": frozen.lock.image, **by_option(frozen.args), "release": content}


def _without_args(content: Any) -> Any:
    """They are told by option; and where the model lies, by its commit."""
    if isinstance(content, Mapping):
        gone = ("args", "model", "image")
        return {key: _without_args(value) for key, value in content.items() if key not in gone}
    return [_without_args(one) for one in content] if isinstance(content, list | tuple) else content


def releases(world: World) -> dict[ReleaseId, Frozen]:
    """Every release that the delivery still knows, by its own object or by a copy."""
    stored = dict[str, Mapping[str, Any]]()
    for ref, seen in world.objects.items():
        if ref.kind == RELEASE and seen.resource.spec:  # a damaged one says nothing
            stored[ref.name] = seen.resource.spec
    return {name: load(name, spec) for name, spec in {**_copies(world), **stored}.items()}


def copied(frozen: Frozen) -> str:
    """As the release's own object keeps it; empty where it keeps none, or cannot hold
    it.
    """
    text = json.dumps(frozen.dump(), sort_keys=True) if frozen.mirrored else ""
    packed = b64encode(zlib.compress(text.encode(), 9)).decode() if text else ""
    return packed if len(packed) < MOST else ""


def with_copy(resource: Resource, release: Release) -> Resource:
    """The object of a release, which keeps the copy as an annotation."""
    meta = dict(resource.spec.get("metadata") or {})
    meta["annotations"] = {**(meta.get("annotations") or {}), COPY + release.id: release.copy}
    return replace(resource, spec={**resource.spec, "metadata": meta})


def _copies(world: World) -> dict[ReleaseId, Mapping[str, Any]]:
    """What is no copy of ours is passed over."""
    found = dict[str, Mapping[str, Any]]()
    for seen in world.objects.values():
        meta = seen.resource.spec.get("metadata")
        for name, packed in ((meta.get("annotations") or {}) if isinstance(meta, dict) else {}).items():
            with suppress(ValueError, zlib.error):
                if name.startswith(COPY):
                    text = zlib.decompressobj().decompress(b64decode(packed, validate=True), LARGEST)
                    found[name.removeprefix(COPY)] = json.loads(text)
    return found
