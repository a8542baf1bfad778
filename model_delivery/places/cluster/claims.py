"""The claim that holds the models: made, adopted, grown; never shrunk, never owned when a
user made it.
"""

from __future__ import annotations

from collections.abc import Collection

from model_delivery.base import Finding, Refused, Size
from model_delivery.places.cluster.client import Client, Forbidden, Status
from model_delivery.places.cluster.look import Look
from model_delivery.places.cluster.objects import Object, label
from model_delivery.targets.kubernetes.kinds import CLAIM
from model_delivery.values import Change, Ref, Resource

CLASSES = "/apis/storage.k8s.io/v1/storageclasses"
CLASS = "storageClassName"
DEFAULT = "storageclass.kubernetes.io/is-default-class"
ANOTHER = "name another claim in storage.claim"


def on_one_node(look: Look, names: Collection[str]) -> list[str]:
    """Of the claims, those that one node at a time can mount."""
    there = [look.get(Ref(CLAIM, name)) for name in names]
    return [live["metadata"]["name"] for live in there if live and "ReadWriteMany" not in live["spec"]["accessModes"]]


def settle(client: Client, resource: Resource, live: Object | None) -> Change | None:
    """None: apply it (make or grow it). A Change: it is as it should be, and it may be a
    user's. Refused: it would have to shrink or move.
    """
    want, any_size = resource.spec["spec"], resource.spec.get("bind", {}).get("any_size")
    if live is None:
        _class_exists(client, want.get(CLASS))
        return None
    name, have = live["metadata"]["name"], live["spec"]
    ours = label(live, "delivery") == resource.delivery
    if ours and _classless(live) and want.get(CLASS):
        _class_exists(client, want[CLASS])
        return None  # one that waits for a class may still be given one
    _may_stay(name, live, want)
    asked, now = (Size(spec["resources"]["requests"]["storage"]) for spec in (want, have))
    sizes = f"it has {now}, the spec says {asked}"
    smaller = asked.bytes < now.bytes
    if any_size or asked.bytes == now.bytes or (smaller and not ours):
        return Change(resource.ref, "unchanged", version=live["metadata"]["resourceVersion"])
    if smaller:
        raise Refused(
            Finding(
                "claim.cannot-shrink", f"the claim {name} cannot shrink", sizes, f"set storage.size to {now} or more"
            )
        )
    if not ours:
        raise Refused(
            Finding("claim.too-small", f"the claim {name} is too small", sizes, "it is not ours: grow it yourself")
        )
    _may_grow(client, name, have.get(CLASS))
    return None


def _classless(live: Object) -> bool:
    return live["spec"].get(CLASS) is None and live.get("status", {}).get("phase") == "Pending"


def _may_stay(name: str, live: Object, want: Object) -> None:
    have = live["spec"]
    if "deletionTimestamp" in live["metadata"]:
        why = "it goes when the last pod that uses it has gone"
        fix = f"wait until it has gone (it is made again), or {ANOTHER}"
        raise Refused(Finding("claim.being-deleted", f"the claim {name} is being deleted", why, fix))
    if live.get("status", {}).get("phase") == "Lost":
        raise Refused(
            Finding(
                "claim.lost",
                f"the claim {name} is lost",
                "its volume is gone",
                "restore the volume, or delete the claim: the models are fetched again",
            )
        )
    if want.get(CLASS) not in (None, have.get(CLASS)):
        raise Refused(
            Finding(
                "claim.other-class",
                f"the claim {name} cannot change its class",
                f"it has {f'class {have[CLASS]}' if have.get(CLASS) else 'no class'}, the spec says {want[CLASS]}",
                f"{ANOTHER}, or correct storage_class",
            )
        )
    modes, wanted = have["accessModes"], want["accessModes"]
    if set(wanted) - set(modes) and "ReadWriteMany" not in modes:
        raise Refused(
            Finding(
                "claim.other-mode",
                f"the claim {name} cannot change its access mode",
                f"it has {', '.join(modes)}, the spec says {', '.join(wanted)}",
                ANOTHER,
            )
        )


def _classes(client: Client) -> dict[str, Object] | None:
    """By name; None: we may not see them."""
    try:
        return {entry["metadata"]["name"]: entry for entry in client.call("GET", CLASSES)["items"]}
    except (Forbidden, Status):
        return None


def _class_exists(client: Client, name: str | None) -> None:
    known = _classes(client)
    if known is None or name in known:
        return
    names = ", ".join(sorted(known)) or "none"
    if name is not None:
        raise Refused(
            Finding(
                "claim.no-such-class",
                f"there is no storage class {name}",
                f"the cluster has: {names}",
                "correct storage.storage_class",
            )
        )
    if not any(entry["metadata"].get("annotations", {}).get(DEFAULT) == "true" for entry in known.values()):
        raise Refused(
            Finding(
                "claim.no-default-class",
                "the cluster has no default storage class",
                f"it has: {names}",
                "name one in storage.storage_class",
            )
        )


def _may_grow(client: Client, claim: str, name: str | None) -> None:
    known = _classes(client) or {}
    if name in known and not known[name].get("allowVolumeExpansion"):
        raise Refused(
            Finding(
                "claim.cannot-grow",
                f"the claim {claim} cannot grow",
                f"its class {name} does not let claims grow",
                "put storage.size back, or name another claim",
            )
        )
