"""The whole way to T9k on a real control plane: its API from the public manuals, a
stand-in for its controller, played pods.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from model_delivery.base import GateFailed, Permanent, Refused
from model_delivery.base.manifests import document
from model_delivery.flows.deliver import deliver
from model_delivery.flows.rollback import rollback
from model_delivery.places.opening import Location
from model_delivery.spec import DeliverySpec
from model_delivery.verbs.plan import plan
from model_delivery.verbs.status import down, status
from tests.cluster.control.lab import ALL_GPUS, NAME, Lab, delivering_lab, refused_then_recreated
from tests.parts.cluster import Cluster
from tests.parts.cluster.played import PlayedNode
from tests.parts.cluster.played_pod import loopback
from tests.parts.cluster.waiting import until
from tests.parts.t9k import StandIn, definitions, install
from tests.places.test_cluster import deliverer, missing_rights

ODD = 'it\'s "odd"\n{{ .Values }} {{{{x}}}} $(HOME) $$(HOME) $HOME `x` ünï'


@pytest.fixture
def lab(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: PlayedNode, t9k: StandIn
) -> Iterator[Lab]:
    t9k.holds, t9k.alter = "routed", lambda status: status
    with delivering_lab(cluster, tmp_path, monkeypatch, node, kind="t9k") as made:
        yield made


def spec(lab: Lab, *args: str, expect: str = "Paris", **more: Any) -> DeliverySpec:
    """Without a load test."""
    return lab.spec(*args, gates={"smoke": {"max_tokens": 16, "expect": expect}, "throughput": None}, **more)


def live(lab: Lab) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lab.cluster.kubectl("get", "mls", NAME, "-n", lab.namespace, "-o", "json"))
    return found


def alone(lab: Lab, release: str) -> None:
    """It serves, nothing else is there, and nothing is left to change."""
    now = live(lab)["spec"]
    assert (now["default"], [one["name"] for one in now["releases"]]) == (release, [release])
    assert lab.record.serving == release
    assert len([ref for ref in lab.place.world(NAME).objects if ref.kind.name == "MLServiceRuntime"]) == 1
    seen = status(lab.place, NAME)
    assert (seen.state, seen.changes) == ("up", ())


def process(lab: Lab, release: str) -> int:
    """Of the release's engine."""
    here = [p for p in lab.node.players.values() if p.is_alive() and p.pod["metadata"]["namespace"] == lab.namespace]
    (player,) = [p for p in here if p.pod["metadata"]["labels"].get("model-delivery/release") == release]
    return player.children["user-container"].pid


def nothing(lab: Lab) -> bool:
    """No MLService of ours, and no pod of one."""
    world = lab.place.world(NAME)
    kinds = {ref.kind.name for ref in world.objects}
    return not kinds & {"MLService", "MLServiceRuntime"} and not [
        p for p in world.beside["Pod"] if "app" in p["metadata"]["labels"]
    ]


def test_a_model_is_delivered_again_and_rolled_back(lab: Lab, t9k: StandIn) -> None:
    seen: list[tuple[str, str | None, tuple[int, ...]]] = []

    def watching(status: dict[str, Any]) -> dict[str, Any]:
        row = (
            status["defaultRelease"],
            status["canaryRelease"],
            tuple(one["trafficPercent"] for one in status["releases"]),
        )
        seen.extend([row] if row not in seen else [])
        return status

    t9k.alter = watching
    first_spec = lab.spec()
    first = deliver.fn(first_spec)
    one = first["release"]
    assert first["result"] == "promoted"
    assert first["url"] == live(lab)["status"]["address"]["url"] == status(lab.place, NAME).url
    assert (again := deliver.fn(first_spec))["result"] == "unchanged", again
    second = deliver.fn(lab.spec(rollout={"strategy": "canary", "steps": [10, 50], "soak": "0s"}))
    two = second["release"]
    assert second["result"] == "promoted"
    assert seen == [
        (one, None, (100,)),
        (one, None, (100, 0)),
        (one, two, (90, 10)),
        (one, two, (50, 50)),
        (two, None, (100, 0)),
        (two, None, (100,)),
    ]
    alone(lab, two)
    where = Location(namespace=lab.namespace)
    assert rollback.fn(NAME, one, where=where)["release"] == one
    alone(lab, one)
    events = lab.cluster.kubectl(
        "get", "events", "-n", lab.namespace, "--field-selector", f"involvedObject.name={NAME}", "-o", "name"
    )
    assert len(events.split()) >= 2, "Created and Ready"
    assert down(lab.place, NAME)
    until(lambda: nothing(lab), 30, "its pods do not end")


@pytest.mark.parametrize("holds", ["routed", "all"])
def test_a_refused_release_is_withdrawn_and_the_first_is_untouched(lab: Lab, t9k: StandIn, holds: Any) -> None:
    """Whether Ready waits for a release without traffic is not documented: both hold."""
    t9k.holds = holds
    serves = deliver.fn(spec(lab))["release"]
    engine = process(lab, serves)
    with pytest.raises(GateFailed, match="Atlantis"):
        deliver.fn(spec(lab, expect="Atlantis"))
    alone(lab, serves)
    told = "Failed core proc|No available memory|cache blocks"
    with pytest.raises(Permanent, match=told):
        deliver.fn(spec(lab, "--fail-start"))
    alone(lab, serves)
    assert process(lab, serves) == engine
    alone(lab, deliver.fn(spec(lab, rollout={"strategy": "canary", "steps": [10], "soak": "0s"}))["release"])


def test_a_refused_first_release_leaves_no_service(lab: Lab) -> None:
    planned = plan(lab.place, spec(lab))
    assert planned.stages == ("dark (with all of the traffic at once)", "promote")
    with pytest.raises(GateFailed, match="Atlantis"):
        deliver.fn(spec(lab, expect="Atlantis"))
    assert lab.record.serving is None
    until(lambda: nothing(lab), 30, "its pods do not end")
    absent = f"registry.example/absent@sha256:{'3' * 64}"
    with pytest.raises(Permanent, match=f"there is no image {absent}"):
        deliver.fn(spec(lab, target={"image": absent}))
    until(lambda: nothing(lab), 30, "its pods do not end")
    deliver.fn(spec(lab))
    assert status(lab.place, NAME).state == "up"


def test_what_is_deleted_or_changed_by_hand_is_healed(lab: Lab) -> None:
    wanted = spec(lab)
    release = deliver.fn(wanted)["release"]
    runtime = live(lab)["spec"]["releases"][0]["predictor"]["model"]["runtime"]
    for thing in (f"mlservice/{NAME}", f"mlserviceruntime/{runtime}"):
        lab.cluster.kubectl("delete", thing, "-n", lab.namespace)
        assert len(status(lab.place, NAME).changes) == 1, thing
        assert deliver.fn(wanted)["result"] == "healed"
        alone(lab, release)
    replicas = [{"op": "replace", "path": "/spec/releases/0/predictor/minReplicas", "value": 0}]
    lab.cluster.kubectl(
        "patch", "mls", NAME, "-n", lab.namespace, "--type=json", "-p", json.dumps(replicas), "--field-manager=somebody"
    )
    assert "somebody" in str(status(lab.place, NAME).changes)
    with pytest.raises(Permanent, match=r'(?s)spec.releases is held by "somebody".*--take-over'):
        deliver.fn(wanted)
    assert deliver.fn(wanted, take_over=True)["result"] == "healed"
    alone(lab, release)
    assert deliver.fn(wanted)["result"] == "unchanged"


def test_a_runtime_that_is_edited_by_hand_is_put_back_and_no_pod_is_touched(lab: Lab) -> None:
    wanted = spec(lab)
    release = deliver.fn(wanted)["release"]
    runtime = live(lab)["spec"]["releases"][0]["predictor"]["model"]["runtime"]
    pods = lab.cluster.kubectl("get", "pods", "-n", lab.namespace, "-o", "name")
    off = json.dumps({"spec": {"enabled": False}})
    lab.cluster.kubectl(
        "patch", "mlserviceruntime", runtime, "-n", lab.namespace, "--type=merge", "-p", off, "--field-manager=somebody"
    )
    assert deliver.fn(wanted, take_over=True)["result"] == "healed"
    alone(lab, release)
    assert lab.cluster.kubectl("get", "pods", "-n", lab.namespace, "-o", "name") == pods


def test_odd_text_reaches_the_engine_as_it_is(lab: Lab) -> None:
    key = {"kube": {"name": "api", "key": "key"}}
    lab.cluster.kubectl("create", "secret", "generic", "api", "--from-literal=key=s3cret-value", "-n", lab.namespace)
    release = deliver.fn(spec(lab, "--label", ODD, serving={"api_key": key}))["release"]
    assert ODD in psutil.Process(process(lab, release)).cmdline()
    kinds = "configmaps,mlservices,mlserviceruntimes,deployments,services,jobs,pods,leases,events"
    everything = lab.cluster.kubectl("get", kinds, "-n", lab.namespace, "-o", "yaml", "--show-managed-fields")
    assert "secretKeyRef" in everything
    assert "s3cret-value" not in everything


def test_two_releases_that_need_all_gpus_are_refused_or_recreated_in_one_write(lab: Lab) -> None:
    second = refused_then_recreated(lambda **more: spec(lab, **more), lambda release: alone(lab, release))
    with pytest.raises(GateFailed, match="Atlantis"):
        deliver.fn(spec(lab, serving=ALL_GPUS, expect="Atlantis", rollout={"strategy": "recreate"}))
    alone(lab, second)


def test_the_example_by_hand_and_the_verbs(lab: Lab, tmp_path: Path) -> None:
    wanted = spec(lab)
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(wanted.model_dump(mode="json")))

    def said(*args: str, code: int = 0) -> str:
        done = subprocess.run(
            [str(Path(sys.executable).with_name("deliver")), *args], capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        return done.stdout

    made = said("render", str(file), "--offline")
    lab.cluster.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", input=made)
    assert "MLService/small would be created" in said("plan", str(file))
    assert not lab.place.deliveries(), "a plan touches nothing"
    said("up", str(file))
    header, row = lab.cluster.kubectl("get", "mlservice", "-n", lab.namespace, "-o", "wide").splitlines()
    url = live(lab)["status"]["address"]["url"]
    assert (header.split(), row.split()) == (["NAME", "READY", "REASON", "URL"], [NAME, "True", url])
    assert f"{NAME}: up at {url}" in said("status", NAME, "-n", lab.namespace)
    assert f"{url}/v1" in said("connect", str(file))
    assert "Starting timing server" in said("logs", str(file))
    assert answered(lab, url) == NAME
    assert "MLService/small" in said("down", NAME, "-n", lab.namespace)


def answered(lab: Lab, url: str) -> str:
    """By the model's name, as the seed's curl asks: the names inside the cluster are
    really addresses in 127/8.
    """
    (found,) = [
        one
        for one in lab.cluster.listed(f"/api/v1/namespaces/{lab.namespace}/services")
        if one["metadata"]["name"] == NAME
    ]
    real = f"http://{loopback(found['spec']['clusterIP'])}:{found['spec']['ports'][0]['port']}"
    assert url.startswith(f"http://{NAME}.{lab.namespace}.")
    body = {"model": NAME, "messages": [{"role": "user", "content": "hello"}], "temperature": 0.5, "max_tokens": 4}
    answer = httpx.post(f"{real}/v1/chat/completions", json=body, trust_env=False).raise_for_status().json()
    return str(answer["model"])


def test_the_notebook_is_made_and_stays(lab: Lab) -> None:
    storage = {"claim": f"{NAME}-models", "size": "1Gi", "storage_class": "late", "notebook": True}
    deliver.fn(spec(lab, storage=storage))
    down(lab.place, NAME)
    found = json.loads(lab.cluster.kubectl("get", "notebook", f"{NAME}-models", "-n", lab.namespace, "-o", "json"))
    assert found["spec"]["template"]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == f"{NAME}-models"


def test_the_shipped_role_is_all_that_a_delivery_needs(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    role = document("rbac/role.yaml", "Role")
    less = copy.deepcopy(role)
    less["rules"] = [rule for rule in role["rules"] if rule["apiGroups"] != ["tensorstack.dev"]]
    wanted = spec(lab)
    monkeypatch.setenv("KUBECONFIG", str(deliverer(lab.cluster, lab.namespace, less, "less")))
    until(lambda: len(missing_rights(wanted, lab.place)) == 10, 20, "the authorizer follows its watch")
    with pytest.raises(Refused, match=rf"we may not create mlservices\.tensorstack\.dev in namespace {lab.namespace}"):
        deliver.fn(wanted)
    monkeypatch.setenv("KUBECONFIG", str(deliverer(lab.cluster, lab.namespace, role, "deliverer")))
    until(lambda: not missing_rights(wanted, lab.place), 20, "the authorizer follows its watch")
    assert deliver.fn(wanted)["result"] == "promoted"
    assert down(lab.place, NAME)


@pytest.fixture
def bare(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: PlayedNode) -> Iterator[Lab]:
    """A cluster without T9k."""
    crds = [f"crd/{one['metadata']['name']}" for one in definitions()]
    cluster.kubectl("delete", "--ignore-not-found", *crds)
    until(lambda: cluster.client.get("/apis/tensorstack.dev/v1beta1").status_code == 404, 30, "the API does not go")
    try:
        with delivering_lab(cluster, tmp_path, monkeypatch, node, kind="t9k") as made:
            yield made
    finally:
        cluster.kubectl("delete", "--ignore-not-found", *crds)


def test_a_cluster_without_t9k_or_with_its_old_api_is_refused_by_name(bare: Lab) -> None:
    with pytest.raises(Refused, match=r"the cluster has no mlservices, mlserviceruntimes of tensorstack\.dev/v1beta1"):
        deliver.fn(spec(bare))
    old = definitions()[:2]
    releases = old[1]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"][
        "releases"
    ]
    predictor = releases["items"]["properties"]["predictor"]["properties"]
    del predictor["storage"], predictor["containersResources"]
    predictor["model"]["properties"]["modelUri"] = {"type": "string"}
    predictor["resources"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    install(bare.cluster, *old)
    with pytest.raises(Refused, match="the cluster's T9k has the old form of the API"):
        deliver.fn(spec(bare))
    storage = {"claim": f"{NAME}-models", "size": "1Gi", "notebook": True}
    with pytest.raises(Refused, match=r"the cluster has no notebooks of tensorstack\.dev/v1beta1"):
        deliver.fn(spec(bare, storage=storage))
    assert not bare.place.deliveries()
