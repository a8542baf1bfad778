"""A release as a file from which it can be made again, here or elsewhere."""

from __future__ import annotations

from typing import Any

from model_delivery.base import Finding, Refused
from model_delivery.places import Place
from model_delivery.places.opening import Location
from model_delivery.run.frozen import Frozen
from model_delivery.run.restore import read
from model_delivery.spec import DeliverySpec, parse_spec

RELEASE = ("apiVersion", "name", "model", "storage", "serving", "target")


def lock(place: Place, name: str, release: str | None = None) -> dict[str, Any]:
    """The spec of ``release`` (default: what serves) with its ``lock``: commit, files
    with their sums, engine or image. Refused where that is not kept.
    """
    book = read(place, name)
    chosen = release or book.record.serving
    if chosen is None:
        what, why = f"{name} serves nothing", "a lock is of what serves, where none is named"
        raise Refused(
            Finding("release.none-serves", what, why, f"name one with --release; see `deliver history {name}`")
        )
    frozen = book.frozen(chosen)
    spec = _spec(chosen, frozen)
    if frozen.lock.image:
        spec["target"] = {**spec["target"], "image": frozen.lock.image}
    return {**spec, "lock": frozen.lock.model_dump(mode="json", exclude_none=True)}


def again(spec: DeliverySpec, release: str) -> DeliverySpec:
    """``spec`` for an earlier release of its delivery: model, serving and target are that
    release's, gates and rollout those of now.
    """
    locked = lock(Location.of(spec.target.key()).open(), spec.name, release)
    given = spec.model_dump(mode="json", exclude={"lock"})
    given |= {part: locked[part] for part in RELEASE if part in locked} | {"lock": locked["lock"]}
    given["serving"] = {**given["serving"], "replicas": spec.serving.replicas.model_dump(mode="json")}
    return parse_spec(given)


def _spec(release: str, frozen: Frozen) -> dict[str, Any]:
    if frozen.spec is None:
        why = "an older version made it, or it was made by hand"
        fix = "`deliver up` of its spec with another argument makes a release that keeps its spec"
        raise Refused(Finding("release.no-spec", f"release {release} keeps no spec", why, fix))
    return dict(frozen.spec)
