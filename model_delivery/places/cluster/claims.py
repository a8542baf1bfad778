"""The claim that holds the models: made, adopted, grown; never shrunk, never owned when a user made it."""

from __future__ import annotations

from typing import Any

from model_delivery.base.findings import Finding, Refused
from model_delivery.base.units import Size
from model_delivery.places.cluster.client import Client, Forbidden, Status
from model_delivery.places.cluster.objects import Object, delivery_of
from model_delivery.values.resources import Change, Resource

CLASSES = "/apis/storage.k8s.io/v1/storageclasses"
DEFAULT = "storageclass.kubernetes.io/is-default-class"


def adopt(client: Client, resource: Resource, live: Object | None) -> Change | None:
    """None: apply it (make or grow it). A Change: it is as it should be, and it may be a user's. Refused: it would have to shrink or move."""
    want = resource.spec["spec"]
    if live is None:
        _class_exists(client, want.get("storageClassName"))
        return None
    name, have = live["metadata"]["name"], live["spec"]
    if live.get("status", {}).get("phase") == "Lost":
        fix = "restore the volume, or delete the claim: the models are fetched again"
        raise Refused(Finding("todo", f"the claim {name} is lost", "its volume is gone", fix))
    asked, now = Size(want["resources"]["requests"]["storage"]), Size(have["resources"]["requests"]["storage"])
    wanted_class = want.get("storageClassName")
    if wanted_class is not None and wanted_class != have.get("storageClassName"):
        why = f"it has class {have.get('storageClassName')}, the spec says {wanted_class}"
        raise Refused(
            Finding(
                "todo",
                f"the claim {name} cannot change its class",
                why,
                "name another claim in storage.claim, or correct storage_class",
            )
        )
    if set(want["accessModes"]) - set(have["accessModes"]) and "ReadWriteMany" not in have["accessModes"]:
        why = f"it has {', '.join(have['accessModes'])}, the spec says {', '.join(want['accessModes'])}"
        raise Refused(
            Finding(
                "todo", f"the claim {name} cannot change its access mode", why, "name another claim in storage.claim"
            )
        )
    mine = delivery_of(live) == resource.delivery
    if resource.spec.get("bind", {}).get("any_size"):
        return Change(resource.ref, "unchanged")
    if asked.bytes < now.bytes and mine:
        raise Refused(
            Finding(
                "todo",
                f"the claim {name} cannot shrink",
                f"it has {now}, the spec says {asked}",
                f"set storage.size to {now} or more",
            )
        )
    if asked.bytes > now.bytes and not mine:
        raise Refused(
            Finding(
                "todo",
                f"the claim {name} is too small",
                f"it has {now}, the spec says {asked}",
                "it is not ours: grow it yourself",
            )
        )
    if asked.bytes > now.bytes:
        _may_grow(client, name, have.get("storageClassName"))
        return None
    return Change(resource.ref, "unchanged", version=live["metadata"]["resourceVersion"])


def classes(client: Client) -> list[dict[str, Any]] | None:
    """None: we may not see them."""
    try:
        return list(client.call("GET", CLASSES)["items"])
    except (Forbidden, Status):
        return None


def _class_exists(client: Client, name: str | None) -> None:
    known = classes(client)
    if known is None:
        return
    names = ", ".join(sorted(one["metadata"]["name"] for one in known)) or "none"
    if name is None and not any(one["metadata"].get("annotations", {}).get(DEFAULT) == "true" for one in known):
        raise Refused(
            Finding(
                "todo",
                "the cluster has no default storage class",
                f"it has: {names}",
                "name one in storage.storage_class",
            )
        )
    if name is not None and name not in {one["metadata"]["name"] for one in known}:
        raise Refused(
            Finding(
                "todo",
                f"there is no storage class {name}",
                f"the cluster has: {names}",
                "correct storage.storage_class",
            )
        )


def _may_grow(client: Client, claim: str, name: str | None) -> None:
    one = next((c for c in classes(client) or () if c["metadata"]["name"] == name), None)
    if one is not None and not one.get("allowVolumeExpansion"):
        why = f"its class {name} does not let claims grow"
        raise Refused(
            Finding("todo", f"the claim {claim} cannot grow", why, "put storage.size back, or name another claim")
        )
