"""What a cluster can refuse before anything is touched: rights, secrets, storage, names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from model_delivery.base.findings import Finding, Refused
from model_delivery.base.home import packaged
from model_delivery.base.secrets import KubeSecret, SecretRef
from model_delivery.places.cluster.client import Forbidden, Status
from model_delivery.places.cluster.jobs import PASSED_ON
from model_delivery.places.cluster.place import Cluster
from model_delivery.spec import DeliverySpec
from model_delivery.targets.kserve import INFERENCE_SERVICE, SERVING_RUNTIME
from model_delivery.targets.kubernetes.kinds import SECRET
from model_delivery.targets.spec import DeploymentTarget, KServeTarget, ProcessTarget, T9kTarget
from model_delivery.values.kind import Kind

ROLE = packaged("manifests") / "rbac" / "role.yaml"
REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
GATEWAY_GROUP, T9K_GROUP, KSERVE_GROUP = "gateway.networking.k8s.io", "tensorstack.dev", "serving.kserve.io"
T9K = f"{T9K_GROUP}/v1beta1"
KSERVE_NAME = 63 - len("isvc.-0123456789-predictor")


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
        yield Finding(
            "todo",
            f"there is no namespace {namespace}",
            f"context {place.context or 'default'}",
            "make it, or correct target.namespace",
        )
        return
    yield from _fields(spec, place)
    yield from _secrets(spec, place, secrets)
    yield from _gateway(spec, place)
    yield from _t9k(spec, place)
    yield from _kserve(spec, place)


def _fields(spec: DeliverySpec, place: Cluster) -> Iterator[Finding]:
    if not spec.model.in_cluster:
        yield Finding(
            "todo",
            f"model.source {spec.model.source} is not there yet in a cluster",
            "a claim's folder is not listed yet",
            "use a hub",
        )
    if spec.runner.image is None and place.own_image() is None:
        fix = "name the image of Model Delivery in runner.image"
        yield Finding(
            "todo", "no image for the steps", "runner.image is null, and this does not run in a pod of the cluster", fix
        )
    if spec.serving.replicas.max > 1 and spec.storage.access.startswith("ReadWriteOnce"):
        why = f"serving.replicas.max is {spec.serving.replicas.max}: pods on other nodes could not mount it"
        yield Finding(
            "todo",
            f"storage.access {spec.storage.access} serves one node only",
            why,
            "use ReadWriteMany, or one replica",
        )
    for name in PASSED_ON:
        if "proxy" in name.lower() and urlsplit(os.environ.get(name, "")).password:
            yield Finding(
                "todo",
                f"{name} holds a password",
                "the fetch Job's spec would show it",
                "use a proxy without a password in its address",
            )


def _secrets(spec: DeliverySpec, place: Cluster, secrets: Mapping[str, SecretRef]) -> Iterator[Finding]:
    for field, ref in secrets.items():
        if isinstance(ref, KubeSecret):
            try:
                place.secret(ref)
            except Refused as refused:
                yield from (Finding("todo", f"{field}: {f.what}", f.why, f.fix) for f in refused.findings)
    for name in (*spec.serving.pod.image_pull_secrets, *spec.runner.image_pull_secrets):
        if not _there(place, SECRET, name):
            yield Finding(
                "todo",
                f"the pull secret {name} is not there",
                f"namespace {place.namespace}",
                "kubectl create secret docker-registry …",
            )


def _there(place: Cluster, kind: Kind, name: str) -> bool:
    try:
        place.client.call("GET", kind.path(place.namespace, name))
    except Status:
        return False
    return True


def _gateway(spec: DeliverySpec, place: Cluster) -> Iterator[Finding]:
    if not isinstance(spec.target, DeploymentTarget | KServeTarget) or spec.target.gateway is None:
        return
    namespace, _, name = spec.target.gateway.rpartition("/")
    where = f"/apis/{GATEWAY_GROUP}/v1/namespaces/{namespace or place.namespace}/gateways/{name}"
    try:
        place.client.call("GET", where)
    except Forbidden:
        return
    except Status:
        fix = "correct target.gateway, or leave it out: then traffic moves all at once (blue-green)"
        yield Finding("todo", f"there is no Gateway {spec.target.gateway}", "or the Gateway API is not installed", fix)


def _t9k(spec: DeliverySpec, place: Cluster) -> Iterator[Finding]:
    """Is its API there, and of the form of 2024-07 and later? Both forms are called v1beta1: the published schema tells."""
    if not isinstance(spec.target, T9kTarget):
        return
    served = {one["name"] for one in _asked(place, f"/apis/{T9K}").get("resources", ())}
    needed = ["mlservices", "mlserviceruntimes", *(["notebooks"] if spec.storage.notebook else [])]
    if missing := [name for name in needed if name not in served]:
        fix = "install T9k, or use another target (notebooks: leave out storage.notebook)"
        yield Finding(
            "todo", f"the cluster has no {', '.join(missing)} of {T9K}", f"context {place.context or 'default'}", fix
        )
        return
    schemas = _asked(place, f"/openapi/v3/apis/{T9K}").get("components", {}).get("schemas", {})
    known: dict[str, Any] = next((one for name, one in schemas.items() if name.endswith(".MLService")), {})
    for key in ("properties", "spec", "properties", "releases", "items", "properties", "predictor"):
        known = known.get(key, {})
    fields = known.get("properties", {})
    if "modelUri" in fields.get("model", {}).get("properties", {}) and "storage" not in fields:
        why = "an MLService there has model.modelUri, and neither storage nor containersResources (T9k before 2024-07)"
        yield Finding(
            "todo",
            "the cluster's T9k has the old form of the API",
            why,
            "upgrade T9k, or use target: {kind: deployment, …}",
        )


def _asked(place: Cluster, path: str) -> dict[str, Any]:
    """Empty: there is no such thing."""
    try:
        return place.client.call("GET", path)
    except Status:
        return {}


def _kserve(spec: DeliverySpec, place: Cluster) -> Iterator[Finding]:
    """Is its API there, and can the service and what KServe makes of it be called so?"""
    if not isinstance(spec.target, KServeTarget):
        return
    for kind in (INFERENCE_SERVICE, SERVING_RUNTIME):
        api, plural = kind.api, kind.plural
        if plural not in {one["name"] for one in _asked(place, f"/apis/{api}").get("resources", ())}:
            fix = "install KServe, or use target: {kind: deployment, …}"
            yield Finding("todo", f"the cluster has no {plural} of {api}", f"context {place.context or 'default'}", fix)
    if not spec.name[0].isalpha() or len(spec.name) > KSERVE_NAME:
        why = f"KServe wants a letter first, and labels its pods isvc.NAME-RELEASE-predictor: at most {KSERVE_NAME} characters"
        yield Finding("todo", f"the name {spec.name} does not fit KServe", why, "choose another name")


def wanted_rules(role: Path = ROLE) -> list[tuple[str, str, str]]:
    """Group, resource and verb of every rule of the shipped Role."""
    found = next(doc for doc in yaml.safe_load_all(role.read_text(encoding="utf-8")) if doc["kind"] == "Role")
    return [
        (g, r, v)
        for rule in found["rules"]
        for g in rule["apiGroups"]
        for r in rule["resources"]
        for v in rule["verbs"]
    ]


def _rights(spec: DeliverySpec, place: Cluster) -> Iterator[Finding]:
    """One question for all rules; a list that the server itself calls incomplete proves nothing missing."""
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": place.namespace},
    }
    said = place.client.call("POST", REVIEW, body=body)["status"]
    if said.get("incomplete"):
        return
    for group, resource, verb in wanted_rules():
        if _needs(spec, group, resource) and not any(
            _allows(rule, group, resource, verb) for rule in said["resourceRules"]
        ):
            what = f"we may not {verb} {resource}{f'.{group}' if group else ''} in namespace {place.namespace}"
            yield Finding(
                "todo",
                what,
                "the rule is missing",
                "kubectl apply -f manifests/rbac/role.yaml, and bind it to who delivers",
            )


def _needs(spec: DeliverySpec, group: str, resource: str) -> bool:
    """Rules for the API of a target, or of an option, are needed by it alone."""
    if group == GATEWAY_GROUP:
        return isinstance(spec.target, DeploymentTarget | KServeTarget) and spec.target.gateway is not None
    if group == KSERVE_GROUP:
        return isinstance(spec.target, KServeTarget)
    return group != T9K_GROUP or (
        isinstance(spec.target, T9kTarget) and (resource != "notebooks" or spec.storage.notebook)
    )


def _allows(rule: Mapping[str, Any], group: str, resource: str, verb: str) -> bool:
    def has(key: str, value: str) -> bool:
        return bool({value, "*"} & set(rule.get(key) or ()))

    return (
        has("apiGroups", group) and has("resources", resource) and has("verbs", verb) and not rule.get("resourceNames")
    )
