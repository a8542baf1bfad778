"""What each target's preflight asks of a place, and what it refuses; the places
themselves are tested in tests/places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from model_delivery.base import EnvSecret, KubeKey, KubeSecret, Permanent, Refused, Secret, SecretRef
from model_delivery.places import Place
from model_delivery.run.preflight import preflight
from model_delivery.spec import DeliverySpec, parse_spec
from model_delivery.targets.kubernetes.cluster import wanted_rules
from model_delivery.values import Address

API = {"tensorstack.dev/v1beta1": ["mlservices", "mlserviceruntimes"], "serving.kserve.io/v1beta1": ["inferenceservices"], "serving.kserve.io/v1alpha1": ["servingruntimes"]}  # fmt: skip
THERE = {f"/apis/{api}": {"resources": [{"name": name} for name in names]} for api, names in API.items()}


@dataclass
class Site:
    """A place that has what it is told; ``closed``: paths that we may not see."""

    there: Mapping[str, Any] = field(default_factory=lambda: {"/api/v1/namespaces/ns": {}, **THERE})
    closed: tuple[str, ...] = ()
    held: Sequence[Mapping[str, Any]] | None = None
    taken: int = 0

    def look_up(self, path: str) -> dict[str, Any] | None:
        if path in self.closed:
            raise Permanent
        return self.there.get(path)

    def rights(self) -> Sequence[Mapping[str, Any]] | None:
        return self.held

    def own_image(self) -> str | None:
        return None

    def listener(self, port: int) -> str:
        return "something else" if port == self.taken else ""

    def secret(self, ref: SecretRef) -> Secret:
        return Secret("s3cret")


def spec(kind: str, target: dict[str, Any] | None = None, **more: Any) -> DeliverySpec:
    where = {"engine": "vllm"} if kind == "process" else {"namespace": "ns"}
    given = {"apiVersion": "model-delivery/v1", "name": "m", "model": {"source": "huggingface", "repo": "a/b"}}
    runner = {} if kind == "process" else {"runner": {"image": "r:1"}}
    return parse_spec({**given, **runner, "target": {"kind": kind, **where, **(target or {})}, **more})


def codes(
    asked: DeliverySpec, site: Site, secrets: Mapping[str, SecretRef] | None = None, up_at: Address | None = None
) -> list[str]:
    target = asked.target.key().target()
    return [finding.code for finding in target.preflight(asked, secrets or {}, site, lambda: up_at)]


@pytest.mark.parametrize("kind", ["process", "t9k", "kserve", "deployment"])
def test_where_all_is_there_nothing_is_refused(kind: str) -> None:
    assert codes(spec(kind), Site()) == []


@pytest.mark.parametrize(
    ("kind", "needed"), [("t9k", "tensorstack.dev"), ("kserve", "serving.kserve.io"), ("deployment", None)]
)
def test_rights_are_asked_for_the_targets_own_kinds_alone(kind: str, needed: str | None) -> None:
    every = {group for group, _, _ in wanted_rules()}
    optional = {"tensorstack.dev", "serving.kserve.io", "gateway.networking.k8s.io"}
    held = [{"apiGroups": [g], "resources": ["*"], "verbs": ["*"]} for g in every - optional | {needed}]
    assert codes(spec(kind), Site(held=held)) == []
    assert set(codes(spec(kind), Site(held=[]))) == {"cluster.right-missing"}
    if kind != "t9k":
        assert set(codes(spec(kind, {"gateway": "g"}), Site(held=held))) == {"cluster.right-missing"}
    else:
        assert codes(spec(kind, storage={"notebook": True}), Site(held=held)) == ["t9k.not-installed"]


def test_a_namespace_that_is_not_there_is_the_only_reason_and_one_that_may_not_be_seen_is_none() -> None:
    assert codes(spec("t9k"), Site({})) == ["cluster.no-namespace"]
    assert codes(spec("deployment"), Site(closed=("/api/v1/namespaces/ns",))) == []


def test_what_a_cluster_lacks_is_named() -> None:
    bare = Site({"/api/v1/namespaces/ns": {}})
    assert codes(spec("t9k"), bare) == ["t9k.not-installed"]
    assert codes(spec("kserve"), bare) == ["kserve.not-installed", "kserve.not-installed"]
    assert codes(spec("kserve", name="9m"), Site()) == ["kserve.name"]
    same = "/apis/serving.kserve.io/v1alpha1/namespaces/ns/llminferenceservices/m"
    assert codes(spec("kserve"), Site({"/api/v1/namespaces/ns": {}, **THERE, same: {}})) == ["kserve.same-name"]
    assert codes(spec("kserve"), Site(closed=(same,))) == []
    assert codes(spec("deployment", {"gateway": "other/g"}), bare) == ["gateway.not-there"]
    gateway = "/apis/gateway.networking.k8s.io/v1/namespaces/other/gateways/g"
    assert codes(spec("deployment", {"gateway": "other/g"}), Site(closed=(gateway,))) == []


def test_an_old_t9k_is_known_by_its_schema() -> None:
    model: dict[str, Any] = {"properties": {"modelUri": {}}}
    predictor = {"properties": {"predictor": {"properties": {"model": model}}}}
    service = {"properties": {"spec": {"properties": {"releases": {"items": predictor}}}}}
    published = {"components": {"schemas": {"dev.tensorstack.v1beta1.MLService": service}}}
    there = {**Site().there, "/openapi/v3/apis/tensorstack.dev/v1beta1": published}
    assert codes(spec("t9k"), Site(there)) == ["t9k.old-api"]


def test_fields_that_a_cluster_cannot_serve() -> None:
    many = {"replicas": {"max": 2}, "pod": {"image_pull_secrets": ["pull"]}}
    asked = spec("deployment", serving=many, runner={}, storage={"notebook": True})
    told = ["target.not-there-yet", "step.no-image", "claim.one-node", "secret.no-pull-secret"]
    assert codes(asked, Site()) == told
    assert codes(spec("deployment"), Site(), {"model.token": EnvSecret(env="T")}) == ["secret.not-in-a-cluster"]


def test_what_a_host_cannot_serve() -> None:
    secret = KubeSecret(kube=KubeKey(name="n", key="k"))
    assert codes(spec("process"), Site(), {"model.token": secret}) == ["secret.not-on-a-host"]
    assert codes(spec("process"), Site(taken=8000)) == ["host.port-taken"]
    assert codes(spec("process"), Site(taken=8000), up_at=Address("127.0.0.1", 8000)) == [], "our own router"
    assert codes(spec("process"), Site(), up_at=Address("127.0.0.1", 8001)) == ["target.moved"]
    asked = spec("process", serving={"replicas": {"max": 2}, "resources": {"limits": {"amd.com/gpu": 1}}})
    assert codes(asked, Site()) == ["target.not-there-yet"] * 2


@pytest.mark.parametrize(
    ("image", "old"),
    [
        ("vllm/vllm-openai:v0.17.1", "v0.17.1"),
        ("registry.example:5000/mirror/vllm-openai:0.9.2-cu118@sha256:" + "a" * 64, "0.9.2"),
        ("rocm/vllm:rocm6.4.1_vllm_0.10.1", "0.10.1"),
        ("vllm/vllm-openai:v0.18.0", None),
        ("vllm/vllm-openai:nightly", None),
        ("nvcr.io/nvidia/vllm:25.09-py3", None),
        ("acme/gateway:0.3", None),
    ],
)
def test_an_image_of_a_vllm_that_is_too_old_is_refused_before_it_fails_to_start(image: str, old: str | None) -> None:
    asked, site = spec("deployment", {"image": image}), cast("Place", Site())
    if old is None:
        preflight(asked, site, asked.target.key().target())
        return
    with pytest.raises(Refused, match=f"vLLM {old} is too old") as refused:
        preflight(asked, site, asked.target.key().target())
    assert "0.18" in refused.value.findings[0].fix
