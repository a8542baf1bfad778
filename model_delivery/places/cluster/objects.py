"""Between our resources and Kubernetes' objects: pure, so that `render` shows what `put`
sends.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from model_delivery.base import Finding, Permanent
from model_delivery.targets.kubernetes.kinds import CONFIG_MAP, JOB
from model_delivery.values import LEASE, RECORD, RELEASE, REPORT, Kind, Observed, Ref, Resource

Object = dict[str, Any]
MANAGER = "model-delivery"
KINDS = {kind.name: kind for kind in (RECORD, RELEASE, REPORT, LEASE)}
WRITE = "model-delivery/write"
CONTENT = "model-delivery/content"
LARGEST = 900 * 1024
NOISE = ("managedFields", "resourceVersion", "generation", "creationTimestamp", "uid", "selfLink")


def object_ref(delivery: str, ref: Ref) -> Ref:
    """The object that holds the resource ``ref``."""
    if ref.kind == LEASE:
        return Ref(LEASE, delivery)
    name = "record" if ref.kind == RECORD else f"{ref.kind.name.lower()}-{ref.name}"
    return Ref(CONFIG_MAP, f"{delivery}-{name}") if ref.kind.stored else ref


def to_object(resource: Resource, namespace: str) -> Object:
    """The whole manifest, labels included. Permanent when it cannot be stored."""
    ref = object_ref(resource.delivery, resource.ref)
    made: Object = {"apiVersion": ref.kind.api, "kind": ref.kind.name}
    if resource.ref.kind == REPORT:
        made["binaryData"] = dict(resource.spec)
    elif resource.ref.kind.stored:
        text = json.dumps(dict(resource.spec), sort_keys=True)
        if len(text) > LARGEST:
            raise Permanent(
                Finding(
                    "record.too-large",
                    f"{resource.ref} is too large for a cluster",
                    f"{len(text)} bytes, a ConfigMap holds {LARGEST}",
                    "lower rollout.history, or the model's file count",
                )
            )
        made |= _lease(resource.spec, text) if ref.kind == LEASE else {"data": {"content": text}}
    else:
        made |= copy.deepcopy({key: value for key, value in resource.spec.items() if key != "bind"})
    meta = made.setdefault("metadata", {})
    meta |= {"name": ref.name, "namespace": namespace}
    meta["labels"] = meta.get("labels", {}) | labels(resource)
    return made


FOREGROUND = ("foregroundDeletion", "orphan")  # the garbage collector's own


def labels(resource: Resource) -> dict[str, str]:
    kind, release = resource.ref.kind, resource.release
    ours = {"delivery": resource.delivery, "role": resource.role, "kind": kind.stored and kind.name, "release": release}
    return {
        "app.kubernetes.io/name": resource.delivery,
        "app.kubernetes.io/instance": release or resource.delivery,
        "app.kubernetes.io/managed-by": MANAGER,
        **{f"model-delivery/{name}": value for name, value in ours.items() if value},
    }


def _lease(spec: Mapping[str, Any], text: str) -> Object:
    now = datetime.now(UTC)
    lease = {
        "holderIdentity": f"{spec['host']} process {spec['pid']} request {spec['request']}",
        "leaseDurationSeconds": max(1, int(spec["expires"] - now.timestamp())),
        "renewTime": now.isoformat(timespec="microseconds").replace("+00:00", "Z"),
    }
    return {"metadata": {"annotations": {CONTENT: text}}, "spec": lease}


def label(live: Mapping[str, Any], name: str) -> str | None:
    """A label of ours; none where an object is not ours."""
    found: str | None = (live["metadata"].get("labels") or {}).get(f"model-delivery/{name}")
    return found


def managers(live: Object) -> list[Object]:
    """Who holds which of its fields."""
    return live["metadata"].get("managedFields") or []


def owner(live: Object) -> str | None:
    """The delivery that it belongs to: by its label, or, where a label of ours would
    restart its pods, by the name under which we hold its fields.
    """
    named = (entry["manager"].partition(f"{MANAGER}/")[2] for entry in managers(live))
    return label(live, "delivery") or next(filter(None, named), None)


def is_made_by_controller(live: Object) -> bool:
    """Labels of ours reach what a controller makes of our object (Knative's Deployments,
    KServe's): they make it no object of ours.
    """
    return any(owner.get("controller") for owner in live["metadata"].get("ownerReferences") or ())


def from_object(live: Object, kind: Kind) -> Observed:
    """An object as a resource: what is stored is read back, of the rest ``spec`` is the
    manifest without what the server adds.
    """
    meta, kind = live["metadata"], KINDS.get(label(live, "kind") or "", kind)
    delivery, release, name = owner(live) or "", label(live, "release"), meta["name"]
    role: Any = label(live, "role") or "storage"
    status: Object = {}
    if kind == REPORT:
        name, spec = name.removeprefix(f"{delivery}-report-"), live.get("binaryData") or {}
    elif kind.stored:
        name = str(release) if kind == RELEASE else kind.name.lower()
        spec = content(live)
    else:
        spec, status = shown(live), _status(live, kind)
    return Observed(Resource(Ref(kind, name), role, delivery, spec, release), str(meta["resourceVersion"]), status)


def _status(live: Object, kind: Kind) -> Object:
    meta, status = live["metadata"], live.get("status") or {}
    seen = {**status, "generation": meta.get("generation", 0), "uid": meta.get("uid", "")}
    if "deletionTimestamp" in meta:
        seen["deleting"] = meta["deletionTimestamp"]
        seen["finalizers"] = [name for name in meta.get("finalizers") or () if name not in FOREGROUND]
    if kind == JOB:
        true = {condition["type"] for condition in status.get("conditions", ()) if condition["status"] == "True"}
        seen["finished"] = bool(true & {"Complete", "Failed"})
    return seen


def content(live: Object) -> Object:
    """What we store in it; empty where somebody damaged that: who needs it says so."""
    try:
        text = live["data"]["content"] if "data" in live else live["metadata"]["annotations"][CONTENT]
        found = json.loads(text)
    except (ValueError, LookupError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def shown(live: Object) -> Object:
    """An object without its status and what only the server writes."""
    rest = {key: value for key, value in live.items() if key not in ("status", "kind", "apiVersion")}
    rest["metadata"] = {key: value for key, value in live["metadata"].items() if key not in NOISE}
    return rest
