"""Between our resources and Kubernetes' objects: pure, so that `render` shows what `put` sends."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from model_delivery.base.findings import Finding, Permanent
from model_delivery.targets.kubernetes.kinds import CONFIG_MAP, JOB
from model_delivery.values.kind import LEASE, RECORD, RELEASE, REPORT, Kind
from model_delivery.values.resources import Observed, Ref, Resource

Object = dict[str, Any]
MANAGER = "model-delivery"
KINDS = {kind.name: kind for kind in (RECORD, RELEASE, REPORT, LEASE)}
WRITE = "model-delivery/write"
CONTENT = "model-delivery/content"
LARGEST = 900 * 1024
NOISE = ("managedFields", "resourceVersion", "generation", "creationTimestamp", "uid", "selfLink")


def place_of(delivery: str, ref: Ref) -> tuple[Kind, str]:
    """The kind and name of the object that holds the resource ``ref``."""
    if ref.kind == LEASE:
        return LEASE, delivery
    if ref.kind == RECORD:
        return CONFIG_MAP, f"{delivery}-record"
    if ref.kind.stored:
        return CONFIG_MAP, f"{delivery}-{ref.kind.name.lower()}-{ref.name}"
    return ref.kind, ref.name


def to_object(resource: Resource, namespace: str) -> Object:
    """The whole manifest, labels included. Permanent when it cannot be stored."""
    kind, name = place_of(resource.delivery, resource.ref)
    made: Object = {"apiVersion": kind.api, "kind": kind.name}
    if resource.ref.kind == REPORT:
        made["binaryData"] = dict(resource.spec)
    elif resource.ref.kind.stored:
        text = json.dumps(dict(resource.spec), sort_keys=True)
        if len(text) > LARGEST:
            what = f"{resource.ref} is too large for a cluster"
            raise Permanent(
                Finding(
                    "todo",
                    what,
                    f"{len(text)} bytes, a ConfigMap holds {LARGEST}",
                    "lower rollout.history, or the model's file count",
                )
            )
        made |= {"data": {"content": text}} if kind == CONFIG_MAP else _lease(resource.spec, text)
    else:
        made |= copy.deepcopy({key: value for key, value in resource.spec.items() if key != "bind"})
    meta = made.setdefault("metadata", {})
    meta |= {"name": name, "namespace": namespace}
    meta["labels"] = meta.get("labels", {}) | labels(resource)
    return made


def labels(resource: Resource) -> dict[str, str]:
    said = {
        "app.kubernetes.io/name": resource.delivery,
        "app.kubernetes.io/instance": resource.release or resource.delivery,
        "app.kubernetes.io/managed-by": MANAGER,
        "model-delivery/delivery": resource.delivery,
        "model-delivery/role": resource.role,
    }
    said |= {"model-delivery/kind": resource.ref.kind.name} if resource.ref.kind.stored else {}
    return said | ({"model-delivery/release": resource.release} if resource.release else {})


def _lease(spec: Mapping[str, Any], text: str) -> Object:
    until = datetime.fromtimestamp(spec["expires"], tz=UTC)
    now = datetime.now(UTC)
    said = {
        "holderIdentity": f"{spec['host']} process {spec['pid']} request {spec['request']}",
        "leaseDurationSeconds": max(1, int((until - now).total_seconds())),
        "renewTime": now.isoformat(timespec="microseconds").replace("+00:00", "Z"),
    }
    return {"metadata": {"annotations": {CONTENT: text}}, "spec": said}


def delivery_of(found: Mapping[str, Any]) -> str | None:
    """The delivery that an object belongs to, None when it is not ours."""
    return (found["metadata"].get("labels") or {}).get("model-delivery/delivery")


def adoption_of(stored: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What the ConfigMap of a release says of the object that was adopted as it."""
    if (stored["metadata"].get("labels") or {}).get("model-delivery/kind") != "Release":
        return None
    said: Mapping[str, Any] | None = json.loads(stored["data"]["content"]).get("payload", {}).get("adopted")
    return said


def is_made_by_controller(found: Mapping[str, Any]) -> bool:
    """Labels of ours reach what a controller makes of our object (Knative's Deployments, KServe's): they make it no object of ours."""
    return any(owner.get("controller") for owner in found["metadata"].get("ownerReferences") or ())


def from_object(found: Mapping[str, Any], kind: Kind) -> Observed:
    """An object of ours as a resource: what is stored is read back, of the rest ``spec`` is the manifest without what the server adds."""
    meta = found["metadata"]
    said = meta.get("labels") or {}
    role, release = said.get("model-delivery/role", "storage"), said.get("model-delivery/release")
    kind = KINDS.get(said.get("model-delivery/kind", ""), kind)
    version, delivery = str(meta["resourceVersion"]), said.get("model-delivery/delivery", "")
    if kind == REPORT:
        name = meta["name"].removeprefix(f"{delivery}-report-")
        return Observed(Resource(Ref(kind, name), role, delivery, found.get("binaryData") or {}, release), version)
    if kind.stored:
        content = json.loads(found["data"]["content"] if "data" in found else meta["annotations"][CONTENT])
        name = release if kind == RELEASE else kind.name.lower()
        return Observed(Resource(Ref(kind, str(name)), role, delivery, content, release), version)
    status = {**(found.get("status") or {}), "generation": meta.get("generation", 0), "uid": meta.get("uid", "")}
    if "deletionTimestamp" in meta:
        status["deleting"] = meta["deletionTimestamp"]
    if kind == JOB:
        status["finished"] = any(
            c["type"] in ("Complete", "Failed") and c["status"] == "True" for c in status.get("conditions", ())
        )
    return Observed(Resource(Ref(kind, meta["name"]), role, delivery, shown(found), release), version, status)


def shown(found: Mapping[str, Any]) -> Object:
    """An object without its status and what only the server writes."""
    rest = {key: value for key, value in found.items() if key not in ("status", "kind", "apiVersion")}
    rest["metadata"] = {key: value for key, value in found["metadata"].items() if key not in NOISE}
    return rest
