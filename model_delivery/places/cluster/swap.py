"""Create or replace, and only what was read: what is ours alone is written whole."""

from __future__ import annotations

import uuid

from model_delivery.base import Finding, Retryable
from model_delivery.places.cluster.client import Doubt, Space, Status
from model_delivery.places.cluster.objects import MANAGER, WRITE, Object, from_object, object_ref, to_object
from model_delivery.values import Change, Mismatch, Ref, Resource

TRIES = 5


def swap(space: Space, resource: Resource, live: Object | None, *, dry_run: bool) -> Change:
    old = from_object(live, resource.ref.kind) if live else None
    if old is not None and old.resource == resource:
        return Change(resource.ref, "unchanged", version=old.version)
    version = None if dry_run else _written(space, resource, old.version if old else None)
    return Change(resource.ref, "updated" if old else "created", version=version)


def _written(space: Space, resource: Resource, old: str | None) -> str:
    """Its new version. A doubtful answer is read again: ours is known by its write's
    id.
    """
    body, mark, ref = to_object(resource, space.name), uuid.uuid4().hex, object_ref(resource.delivery, resource.ref)
    meta = body["metadata"]
    meta["annotations"] = meta.get("annotations", {}) | {WRITE: mark}
    meta |= {"resourceVersion": old} if old else {}
    method, target = ("PUT", ref) if old else ("POST", Ref(ref.kind, ""))
    for _ in range(TRIES):
        try:
            done = space.send(method, target, {"fieldManager": MANAGER}, body, once=True)["metadata"]
        except Doubt:
            done = (space.get(ref) or {}).get("metadata", {})
            if done.get("annotations", {}).get(WRITE) != mark:
                if done.get("resourceVersion") == old:
                    continue
                raise Mismatch(resource.ref) from None
        except Status as status:
            if status.code in (404, 409):
                raise Mismatch(resource.ref) from None
            raise space.refusal(resource.ref, status) from None
        return str(done["resourceVersion"])
    why = "the API server broke off five times"
    raise Retryable(Finding("cluster.no-answer", f"{resource.ref} could not be written", why, "run again"))
