"""What a cluster can refuse before anything is touched, whatever the target: rights,
namespace, secrets, storage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from model_delivery.base import Finding, KubeSecret, Permanent, Refused, SecretRef
from model_delivery.base.manifests import document
from model_delivery.targets.asked import Asked
from model_delivery.targets.kubernetes.kinds import SECRET
from model_delivery.targets.protocol import Site
from model_delivery.values import Kind

ALWAYS = ("", "apps", "batch", "discovery.k8s.io", "coordination.k8s.io")  # the groups that every target needs


def wanted_rules() -> list[tuple[str, str, str]]:
    """Group, resource and verb of every rule of the shipped Role."""
    return [
        (group, resource, verb)
        for rule in document("rbac/role.yaml", "Role")["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    ]


def rights(place: Site, namespace: str, uses: Sequence[Kind]) -> Iterator[Finding]:
    """Rules for the API of a target, or of an option, are needed by it alone. A list that
    the server itself calls incomplete proves nothing missing.
    """
    held, used = place.rights(), {(kind.group, kind.plural) for kind in uses}
    if held is None:
        return
    for group, resource, verb in wanted_rules():
        if not (group in ALWAYS or (group, resource) in used):
            continue
        if not any(_allows(rule, group, resource, verb) for rule in held):
            what = f"we may not {verb} {resource}{f'.{group}' if group else ''} in namespace {namespace}"
            fix = "kubectl apply -f manifests/rbac/role.yaml, and bind it to who delivers"
            yield Finding("cluster.right-missing", what, "the rule is missing", fix)


def _allows(rule: Mapping[str, Any], *wanted: str) -> bool:
    parts = zip(("apiGroups", "resources", "verbs"), wanted, strict=True)
    return not rule.get("resourceNames") and all({value, "*"} & set(rule.get(part) or ()) for part, value in parts)


def namespace(place: Site, name: str, context: str | None) -> Iterator[Finding]:
    try:
        there = place.look_up(f"/api/v1/namespaces/{name}") is not None
    except Permanent:
        return  # a namespaced role may not see it: what is in it will tell
    if not there:
        fix = "make it, or correct target.namespace"
        yield Finding("cluster.no-namespace", f"there is no namespace {name}", context_of(context), fix)


def context_of(context: str | None) -> str:
    return f"context {context or 'default'}"


def foreign_secrets(secrets: Mapping[str, SecretRef]) -> Iterator[Finding]:
    for field, ref in secrets.items():
        if not isinstance(ref, KubeSecret):
            why = "a pod sees neither the environment nor the files of the machine that delivers"
            fix = "make one, and use {kube: {name: …, key: …}}"
            yield Finding("secret.not-in-a-cluster", f"{field} is not a Kubernetes secret", why, fix)


def fields(asked: Asked, place: Site) -> Iterator[Finding]:
    access, most = asked.storage.access, asked.serving.replicas.max
    if not asked.model.in_cluster:
        what, why = (
            f"model.source {asked.model.source} is not there yet in a cluster",
            "a claim's folder is not listed yet",
        )
        yield Finding("source.not-in-a-cluster", what, why, "use a hub")
    if asked.runner.image is None and place.own_image() is None:
        why, fix = (
            "runner.image is null, and this does not run in a pod of the cluster",
            "name the image of Model Delivery in runner.image",
        )
        yield Finding("step.no-image", "no image for the steps", why, fix)
    if most > 1 and access.startswith("ReadWriteOnce"):
        what, fix = f"storage.access {access} serves one node only", "use ReadWriteMany, or one replica"
        why = f"serving.replicas.max is {most}: pods on other nodes could not mount it"
        yield Finding("claim.one-node", what, why, fix)


def secrets(asked: Asked, place: Site, namespace: str, refs: Mapping[str, SecretRef]) -> Iterator[Finding]:
    for field, ref in refs.items():
        if isinstance(ref, KubeSecret):
            try:
                place.secret(ref)
            except Refused as refused:
                yield from (replace(finding, what=f"{field}: {finding.what}") for finding in refused.findings)
    for name in (*asked.serving.pod.image_pull_secrets, *asked.runner.image_pull_secrets):
        if place.look_up(SECRET.path(namespace, name)) is None:
            fix = "kubectl create secret docker-registry …"
            yield Finding(
                "secret.no-pull-secret", f"the pull secret {name} is not there", f"namespace {namespace}", fix
            )


def absent_kinds(place: Site, kinds: Sequence[Kind]) -> list[Kind]:
    """Of ``kinds``, what the cluster's API does not have."""

    def served(api: str) -> set[str]:
        return {resource["name"] for resource in (place.look_up(f"/apis/{api}") or {}).get("resources", ())}

    known = {api: served(api) for api in {kind.api for kind in kinds}}
    return [kind for kind in kinds if kind.plural not in known[kind.api]]
