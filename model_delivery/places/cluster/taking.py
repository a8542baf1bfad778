"""Somebody's object becomes ours: the fields that others hold are given up in one write, so that none of them is in the way of a later change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from model_delivery.places.cluster.objects import MANAGER, Object, delivery_of
from model_delivery.values.resources import Resource


def may_take(resource: Resource, live: Object) -> bool:
    """Is ``live`` the very object that ``resource`` was adopted from, and of no other delivery?"""
    uid = resource.spec.get("bind", {}).get("adopted")
    return bool(uid) and live["metadata"]["uid"] == uid and delivery_of(live) in (None, resource.delivery)


def is_taken(live: Object) -> bool:
    return any(_is_ours(one) for one in live["metadata"].get("managedFields") or ())


def given_up(live: Object) -> Iterator[str]:
    """A line for each manager whose fields are taken."""
    for one in live["metadata"].get("managedFields") or ():
        if not one.get("subresource"):
            yield f"the fields that {one['manager']} holds become ours"


def transfer(live: Object, applied: Object) -> dict[str, Any]:
    """A merge patch of this very version after which we are its only manager, but for what others write into its status or scale.

    ``applied``: as it would be with our fields applied, whose entry says what we hold then. Of the object's other fields nothing changes.
    """
    (ours,) = [one for one in applied["metadata"]["managedFields"] if _is_ours(one)]
    kept = [one for one in live["metadata"].get("managedFields") or () if one.get("subresource")]
    return {"metadata": {"resourceVersion": live["metadata"]["resourceVersion"], "managedFields": [ours, *kept]}}


def _is_ours(entry: Object) -> bool:
    return bool(entry["manager"] == MANAGER and entry["operation"] == "Apply")
