"""What a cluster can refuse before anything is touched: rights, secrets, storage, names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from delivery.findings import Finding, Refused
from delivery.places.client import Forbidden, Status
from delivery.places.cluster import Cluster
from delivery.places.jobs import PASSED_ON
from delivery.places.objects import path
from delivery.spec import DeliverySpec, DeploymentTarget, KubeSecret, LocalModel, ProcessTarget, SecretRef

ROLE = Path(__file__).parent.parent.parent / "manifests" / "rbac" / "role.yaml"
REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
GATEWAY_GROUP = "gateway.networking.k8s.io"


def preflight_cluster(spec: DeliverySpec, place: Cluster, secrets: Mapping[str, SecretRef]) -> Iterator[Finding]:
    """Every reason against ``spec`` that the cluster knows already; a namespace that is not there is the only one then."""
    if isinstance(spec.target, ProcessTarget):
        return
    namespace = spec.target.namespace
    missing = list(_rights(spec, place))
    yield from missing
    if missing:
        return
    try:
        place.client.call("GET", f"/api/v1/namespaces/{namespace}")
    except Forbidden:
        pass  # a namespaced role may not see it: what is in it will tell
    except Status:
        yield Finding(f"there is no namespace {namespace}", f"context {place.context or 'default'}", "make it, or correct target.namespace")
        return
    yield from _fields(spec, place)
    yield from _secrets(spec, place, secrets)
    yield from _gateway(spec, place)


def _fields(spec: DeliverySpec, place: Cluster) -> Iterator[Finding]:
    if isinstance(spec.model, LocalModel):
        yield Finding("model.source local is not there yet in a cluster", "a claim's folder is not listed yet", "use a hub")
    if spec.runner.image is None and place.own_image() is None:
        fix = "name the image of Model Delivery in runner.image"
        yield Finding("no image for the steps", "runner.image is null, and this does not run in a pod of the cluster", fix)
    if spec.serving.replicas.max > 1 and spec.storage.access.startswith("ReadWriteOnce"):
        why = f"serving.replicas.max is {spec.serving.replicas.max}: pods on other nodes could not mount it"
        yield Finding(f"storage.access {spec.storage.access} serves one node only", why, "use ReadWriteMany, or one replica")
    for name in PASSED_ON:
        if "proxy" in name.lower() and urlsplit(os.environ.get(name, "")).password:
            yield Finding(f"{name} holds a password", "the fetch Job's spec would show it", "use a proxy without a password in its address")


def _secrets(spec: DeliverySpec, place: Cluster, secrets: Mapping[str, SecretRef]) -> Iterator[Finding]:
    for field, ref in secrets.items():
        if isinstance(ref, KubeSecret):
            try:
                place.secret(ref)
            except Refused as refused:
                yield from (Finding(f"{field}: {f.what}", f.why, f.fix) for f in refused.findings)
    for name in (*spec.serving.pod.image_pull_secrets, *spec.runner.image_pull_secrets):
        if not _there(place, "Secret", name):
            yield Finding(f"the pull secret {name} is not there", f"namespace {place.namespace}", "kubectl create secret docker-registry …")


def _there(place: Cluster, kind: str, name: str) -> bool:
    try:
        place.client.call("GET", path(kind, place.namespace, name))
    except Status:
        return False
    return True


def _gateway(spec: DeliverySpec, place: Cluster) -> Iterator[Finding]:
    if not isinstance(spec.target, DeploymentTarget) or spec.target.gateway is None:
        return
    namespace, _, name = spec.target.gateway.rpartition("/")
    where = f"/apis/{GATEWAY_GROUP}/v1/namespaces/{namespace or place.namespace}/gateways/{name}"
    try:
        place.client.call("GET", where)
    except Forbidden:
        return
    except Status:
        fix = "correct target.gateway, or leave it out: then traffic moves all at once (blue-green)"
        yield Finding(f"there is no Gateway {spec.target.gateway}", "or the Gateway API is not installed", fix)


def wanted_rules(role: Path = ROLE) -> list[tuple[str, str, str]]:
    """Group, resource and verb of every rule of the shipped Role."""
    found = next(doc for doc in yaml.safe_load_all(role.read_text(encoding="utf-8")) if doc["kind"] == "Role")
    return [(g, r, v) for rule in found["rules"] for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]]


def _rights(spec: DeliverySpec, place: Cluster) -> Iterator[Finding]:
    """One question for all rules; a list that the server itself calls incomplete proves nothing missing."""
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": place.namespace}}
    said = place.client.call("POST", REVIEW, body=body)["status"]
    if said.get("incomplete"):
        return
    for group, resource, verb in wanted_rules():
        gateway = isinstance(spec.target, DeploymentTarget) and spec.target.gateway is not None
        if (group != GATEWAY_GROUP or gateway) and not any(_allows(rule, group, resource, verb) for rule in said["resourceRules"]):
            what = f"we may not {verb} {resource}{f'.{group}' if group else ''} in namespace {place.namespace}"
            yield Finding(what, "the rule is missing", "kubectl apply -f manifests/rbac/role.yaml, and bind it to who delivers")


def _allows(rule: Mapping[str, Any], group: str, resource: str, verb: str) -> bool:
    def has(key: str, value: str) -> bool:
        return bool({value, "*"} & set(rule.get(key) or ()))

    return has("apiGroups", group) and has("resources", resource) and has("verbs", verb) and not rule.get("resourceNames")
