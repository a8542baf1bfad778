"""Somebody's object becomes ours: the fields that others hold are given up in one write, so that none of them is in the way of a later change."""

from __future__ import annotations

import time
from typing import Any

from delivery.places.objects import MANAGER, Object, delivery_of
from delivery.resources import Resource

MARK: Object = {"f:metadata": {"f:labels": {"f:model-delivery/delivery": {}}}}  # a field that is not there yet: owning it changes nothing


def may_take(resource: Resource, live: Object) -> bool:
    """Is ``live`` the very object that ``resource`` was adopted from, and of no other delivery?"""
    uid = resource.spec.get("bind", {}).get("adopted")
    return bool(uid) and live["metadata"]["uid"] == uid and delivery_of(live) in (None, resource.delivery)


def is_taken(live: Object) -> bool:
    return any(one["manager"] == MANAGER and one["operation"] == "Apply" for one in live["metadata"].get("managedFields") or ())


def transfer(live: Object) -> dict[str, Any]:
    """A merge patch of this very version after which we are its only manager, but for what others write into its status or scale: of its fields nothing changes.

    Our entry holds one label that is not there: with no entry at all the API server would make one that holds every field.
    """
    meta = live["metadata"]
    kept = [one for one in meta.get("managedFields") or () if one.get("subresource")]
    ours = {"manager": MANAGER, "operation": "Apply", "apiVersion": live["apiVersion"], "fieldsType": "FieldsV1", "fieldsV1": MARK}
    ours["time"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"metadata": {"resourceVersion": meta["resourceVersion"], "managedFields": [ours, *kept]}}
