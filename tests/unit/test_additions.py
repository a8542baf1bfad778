"""What others put into our objects, as values: by whom, where, whether it is known to be
harmless.
"""

from __future__ import annotations

from typing import Any

import pytest

from model_delivery.places.cluster.additions import taken, told

OURS: dict[str, Any] = {
    "f:spec": {"f:template": {"f:spec": {"f:containers": {'k:{"name":"engine"}': {".": {}, "f:image": {}}}}}}
}
ENGINE, SIDE = 'k:{"name":"engine"}', 'k:{"name":"side"}'


def entry(manager: str, fields: dict[str, Any], operation: str = "Update", **more: str) -> dict[str, Any]:
    return {"manager": manager, "operation": operation, "fieldsV1": fields} | more


def pod(**fields: Any) -> dict[str, Any]:
    return {"f:spec": {"f:template": {"f:spec": {f"f:{key}": value for key, value in fields.items()}}}}


def notes(*names: str, template: bool = True) -> dict[str, Any]:
    meta: dict[str, Any] = {"f:metadata": {"f:annotations": {".": {}, **{f"f:{name}": {} for name in names}}}}
    return {"f:spec": {"f:template": meta}} if template else meta


def live(*entries: dict[str, Any], **annotations: str) -> dict[str, Any]:
    ours = entry("model-delivery", OURS, "Apply")
    template = {"metadata": {"annotations": {name.replace("_", "."): value for name, value in annotations.items()}}}
    return {"metadata": {"name": "m", "managedFields": [ours, *entries]}, "spec": {"template": template}}


BY_HAND: dict[str, tuple[dict[str, Any], str]] = {
    "env": (pod(containers={ENGINE: {"f:env": {'k:{"name":"A"}': {".": {}, "f:name": {}}}}}), "containers[engine].env[A]"),
    "a new list of env": (
        pod(containers={ENGINE: {"f:env": {".": {}, 'k:{"name":"A"}': {".": {}}, 'k:{"name":"B"}': {".": {}}}}}),
        "containers[engine].env[A], spec.template.spec.containers[engine].env[B]",
    ),
    "sidecar": (pod(containers={SIDE: {".": {}, "f:image": {}, "f:name": {}}}), "containers[side]"),
    "node": (pod(nodeSelector={}), "nodeSelector"),
    "init": (pod(initContainers={".": {}, SIDE: {".": {}, "f:name": {}}}), "initContainers[side]"),
    "probe": (pod(containers={ENGINE: {"f:livenessProbe": {"f:httpGet": {"f:path": {}}}}}), "[engine].livenessProbe"),
    "toleration": (pod(tolerations={}), "tolerations"),
    "unknown note": (notes("example.com/owner"), "annotations[example.com/owner]"),
    "istio's name without its mark": (pod(containers={'k:{"name":"istio-proxy"}': {".": {}}}), "containers[istio-proxy]"),
}  # fmt: skip


@pytest.mark.parametrize("case", BY_HAND)
def test_what_somebody_added_is_told_by_name_and_can_be_taken_away(case: str) -> None:
    fields, path = BY_HAND[case]
    harmless, rest = told(live(entry("kubectl-edit", fields)))
    assert harmless == ()
    assert len(rest) == 1
    assert rest[0].startswith("kubectl-edit added spec.template.")
    assert rest[0].endswith(path)
    ours, *others = taken(live(entry("kubectl-edit", fields)), "model-delivery")
    assert told({"metadata": {"managedFields": [ours, *others]}}) == ((), ())
    assert ours["fieldsV1"] != OURS, "what is ours goes when it is applied without it"


HARMLESS: dict[str, tuple[dict[str, Any], dict[str, str], str]] = {
    "autoscaler": (
        entry("kube-controller-manager", {"f:spec": {"f:replicas": {}}}, subresource="scale"), {}, "spec.replicas (harmless: an autoscaler",
    ),
    "restart": (entry("kubectl-rollout", notes("kubectl.kubernetes.io/restartedAt")), {}, "rollout restart"),
    "argo": (entry("argocd-controller", notes("argocd.argoproj.io/tracking-id", template=False)), {}, "Argo CD"),
    "istio": (
        entry("kubectl", pod(containers={'k:{"name":"istio-proxy"}': {".": {}}})), {"sidecar_istio_io/status": "injected"}, "injected by istio.io",
    ),
    "linkerd's note": (entry("linkerd", notes("linkerd.io/inject")), {}, "injected by linkerd.io"),
    "vault": (
        entry("kubectl", pod(initContainers={'k:{"name":"vault-agent-init"}': {".": {}}})), {"vault_hashicorp_com/agent-inject": "true"},
        "injected by vault.hashicorp.com",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HARMLESS)
def test_what_a_known_controller_added_is_told_as_harmless_and_never_taken_away(case: str) -> None:
    added, annotations, why = HARMLESS[case]
    harmless, rest = told(live(added, **annotations))
    assert rest == ()
    assert why in harmless[0]
    assert taken(live(added, **annotations), "model-delivery")[1] == added


@pytest.mark.parametrize(
    "books",
    [
        entry("kube-controller-manager", {"f:metadata": {"f:annotations": {"f:deployment.kubernetes.io/revision": {}}}, "f:status": {}}, subresource="status"),
        entry("kubectl-client-side-apply", notes("kubectl.kubernetes.io/last-applied-configuration", template=False)),
        entry("kserve", {"f:metadata": {"f:finalizers": {".": {}, 'v:"inferenceservice.finalizers"': {}}}}),
        entry("somebody", OURS, "Apply"),
        entry("model-delivery/m", pod(nodeSelector={}), "Apply"),
    ],
    ids=["status", "kubectl", "finalizer", "the same value", "ours"],
)  # fmt: skip
def test_what_is_no_addition_is_not_told(books: dict[str, Any]) -> None:
    assert told(live(books)) == ((), ())


def test_a_person_who_scales_is_no_autoscaler() -> None:
    scaled = entry("kubectl", {"f:spec": {"f:replicas": {}}}, subresource="scale")
    assert told(live(scaled)) == ((), ("kubectl added spec.replicas",))
