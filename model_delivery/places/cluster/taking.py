"""Somebody's object becomes ours: the fields that others hold are given up in one write,
so that none of them is in the way of a later change.
"""

from __future__ import annotations

from collections.abc import Iterator

from model_delivery.places.cluster.client import APPLY, MERGE, Space, Status
from model_delivery.places.cluster.objects import MANAGER, Object, label
from model_delivery.values import Ref, Resource, Version


def may_take(resource: Resource, live: Object) -> bool:
    """Is ``live`` the very object that ``resource`` was adopted from, and of no other
    delivery?
    """
    uid = resource.spec.get("bind", {}).get("adopted")
    return bool(uid) and live["metadata"]["uid"] == uid and label(live, "delivery") in (None, resource.delivery)


def is_taken(live: Object) -> bool:
    return any(map(_is_ours, _managers(live)))


def given_up(live: Object) -> Iterator[str]:
    """A line for each manager whose fields are taken."""
    for entry in _managers(live):
        if not entry.get("subresource"):
            yield f"the fields that {entry['manager']} holds become ours"


def take(space: Space, ref: Ref, live: Object, body: Object) -> Version:
    """Its new version."""
    query = {"fieldManager": MANAGER, "force": "true", "dryRun": "All"}
    try:
        applied = space.send("PATCH", ref, query, body, media=APPLY)
        now = space.send("PATCH", ref, body=_transfer(live, applied), media=MERGE)
    except Status as status:
        now = space.get(ref) or {}
        if status.code != 409 or not now or not is_taken(now):
            raise space.refusal(ref, status) from None
    return str(now["metadata"]["resourceVersion"])


def _transfer(live: Object, applied: Object) -> Object:
    """A merge patch of this very version after which we are its only manager, but for
    what others write into its status or scale.

    ``applied``: as it would be with our fields applied, whose entry says what we hold
    then. Of the object's other fields nothing changes.
    """
    (ours,) = filter(_is_ours, _managers(applied))
    kept = [entry for entry in _managers(live) if entry.get("subresource")]
    return {"metadata": {"resourceVersion": live["metadata"]["resourceVersion"], "managedFields": [ours, *kept]}}


def _managers(live: Object) -> list[Object]:
    return live["metadata"].get("managedFields") or []


def _is_ours(entry: Object) -> bool:
    return bool(entry["manager"] == MANAGER and entry["operation"] == "Apply")
