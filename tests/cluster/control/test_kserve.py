"""The whole way to KServe on a real control plane: the real manager with its webhooks,
played pods; and what it hides.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from model_delivery.base import GateFailed, Permanent, Refused, Retryable
from model_delivery.base.manifests import document
from model_delivery.flows.deliver import deliver
from model_delivery.flows.rollback import rollback
from model_delivery.places.opening import Location
from model_delivery.run.frozen import Frozen
from model_delivery.spec import DeliverySpec
from model_delivery.targets.kserve import KServe as Target
from model_delivery.targets.kserve import KServeKey
from model_delivery.tasks import step
from model_delivery.values import RELEASE, Failed, InProgress, Readiness, Ref, Release
from model_delivery.verbs.status import down, status
from tests.cluster.control.lab import NAME, Lab, delivering_lab, gpu_node, refused_then_recreated
from tests.parts.cluster import Cluster, running_control_plane
from tests.parts.cluster.played import PlayedNode
from tests.parts.cluster.played_pod import loopback
from tests.parts.cluster.waiting import until
from tests.parts.gateway import running_gateway
from tests.parts.kserve import KServe
from tests.parts.ports import free_port
from tests.places.test_cluster import deliverer, missing_rights

ODD = 'it\'s "odd"\n{{ .Values }} {{{{x}}}} {{`y`}} $(HOME) $$(HOME) $HOME `x` ünï'
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


def test_a_cluster_without_kserve_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster of its own: whatever ran before may have installed it in the other
    one.
    """
    with (
        running_control_plane(tmp_path / "cluster") as cluster,
        gpu_node(cluster) as node,
        delivering_lab(cluster, tmp_path, monkeypatch, node, kind="kserve") as bare,
    ):
        with pytest.raises(
            Refused,
            match=r"(?s)no inferenceservices of serving.kserve.io/v1beta1.*no servingruntimes of serving.kserve.io",
        ):
            deliver.fn(spec(bare))
        assert not bare.place.deliveries()


@pytest.fixture
def lab(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: PlayedNode, kserve: KServe
) -> Iterator[Lab]:
    with delivering_lab(cluster, tmp_path, monkeypatch, node, kind="kserve", **RESTRICTED) as made:
        yield made


def spec(lab: Lab, *args: str, expect: str = "Paris", **more: Any) -> DeliverySpec:
    """Without a load test."""
    return lab.spec(*args, gates={"smoke": {"max_tokens": 16, "expect": expect}, "throughput": None}, **more)


def live(lab: Lab, what: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lab.cluster.kubectl("get", what, "-n", lab.namespace, "-o", "json"))
    return found


def alone(lab: Lab, release: str) -> None:
    """It serves with all of the traffic, nothing else is there, and nothing is left to
    change.
    """
    world = lab.place.world(NAME)
    ours = {
        str(ref)
        for ref, seen in world.objects.items()
        if seen.resource.role == "release" and ref.kind.name != "ConfigMap"
    }
    assert {one for one in ours if "/small" in one} == {
        f"InferenceService/{NAME}-{release}",
        f"ServingRuntime/{NAME}-{release}",
    }
    assert (lab.record.serving, lab.routed_to(world)) == (release, release)
    seen = status(lab.place, NAME)
    assert (seen.state, seen.changes) == ("up", ())


def readiness(lab: Lab, release: str) -> Readiness:
    """As a run would see it now."""
    world = lab.place.world(NAME)
    frozen = Frozen.model_validate(world.objects[Ref(RELEASE, release)].resource.spec)
    return Target(KServeKey(namespace=lab.namespace)).readiness(Release(release, frozen.payload), world)


def process(lab: Lab, release: str) -> int:
    """Of the release's engine."""
    here = [p for p in lab.node.players.values() if p.is_alive() and p.pod["metadata"]["namespace"] == lab.namespace]
    (player,) = [p for p in here if p.pod["metadata"]["labels"].get("model-delivery/release") == release]
    return player.children["kserve-container"].pid


def test_a_model_is_delivered_again_and_rolled_back(lab: Lab) -> None:
    wanted = lab.spec()
    first = deliver.fn(wanted)
    assert first["result"] == "promoted"
    assert first["url"] == f"http://{NAME}.{lab.namespace}.svc:8000"
    made = live(lab, f"isvc/{NAME}-{first['release']}")
    assert made["status"]["deploymentMode"] == "Standard", "by our annotation: the cluster's default is another"
    assert "ingress" not in lab.cluster.kubectl("get", "ingress,hpa", "-n", lab.namespace, "-o", "name"), (
        "no way in past the route"
    )
    again = deliver.fn(wanted)
    assert (again["result"], again["release"]) == ("unchanged", first["release"])
    second = deliver.fn(lab.spec())
    assert second["result"] == "promoted"
    alone(lab, second["release"])
    back = rollback.fn(NAME, first["release"], where=Location(namespace=lab.namespace))
    assert back["release"] == first["release"]
    alone(lab, first["release"])
    assert down(lab.place, NAME)
    assert {ref.kind.name for ref in lab.place.world(NAME).objects} <= {"Record", "Release", "ConfigMap"}


def test_a_second_release_is_dark_at_its_own_url_and_withdrawn_when_it_is_refused(lab: Lab) -> None:
    serves = deliver.fn(spec(lab))["release"]
    engine = process(lab, serves)
    with pytest.raises(GateFailed, match="Atlantis"):
        deliver.fn(spec(lab, expect="Atlantis"))
    refused = lab.record.ended[-1].release
    asked = [
        one["data"]["input.json"]
        for one in live(lab, "configmaps")["items"]
        if one["metadata"]["name"].startswith(f"{NAME}-smoke")
    ]
    assert any(f"http://{NAME}-{refused}-predictor.{lab.namespace}.svc" in one for one in asked)
    alone(lab, serves)
    absent = f"registry.example/absent@sha256:{'3' * 64}"
    hopeless: dict[str, dict[str, Any]] = {
        f"there is no image {absent}": {"target": {"image": absent}},
        "exit code 2": {"serving": {"args": ["--no-such-flag"]}},
        "no node could ever hold the pod: memory": {"serving": {"resources": {"limits": {"memory": "1Ti"}}}},
    }
    for told, more in hopeless.items():
        with pytest.raises(Permanent, match=told):
            deliver.fn(spec(lab, **more))
        alone(lab, serves)
    hard = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few", "namespace": lab.namespace}}
    lab.cluster.apply(hard | {"spec": {"hard": {"requests.nvidia.com/gpu": "1"}}})
    with pytest.raises(Permanent, match="quota is used up"):
        deliver.fn(spec(lab, serving={"resources": {"limits": {"nvidia.com/gpu": 2}}}))
    alone(lab, serves)
    assert process(lab, serves) == engine


def test_what_is_deleted_or_changed_by_hand_is_healed(lab: Lab) -> None:
    wanted = spec(lab)
    release = deliver.fn(wanted)["release"]
    main = f"{NAME}-{release}"
    for thing in (f"isvc/{main}", f"servingruntime/{main}", f"service/{NAME}"):
        lab.cluster.kubectl("delete", thing, "-n", lab.namespace)
        assert len(status(lab.place, NAME).changes) == 1, thing
        assert deliver.fn(wanted)["result"] == "healed"
        alone(lab, release)
    theirs = json.dumps({"spec": {"predictor": {"minReplicas": 2, "maxReplicas": 2}}})
    lab.cluster.kubectl(
        "patch", "isvc", main, "-n", lab.namespace, "--type=merge", "-p", theirs, "--field-manager=somebody"
    )
    assert "somebody" in str(status(lab.place, NAME).changes)
    with pytest.raises(Permanent, match=r'(?s)minReplicas is held by "somebody".*--take-over'):
        deliver.fn(wanted)
    assert deliver.fn(wanted, take_over=True)["result"] == "healed"
    assert deliver.fn(wanted)["result"] == "unchanged"
    alone(lab, release)


def test_odd_text_reaches_the_engine_as_it_is_and_a_key_nothing_else(lab: Lab) -> None:
    lab.cluster.kubectl("create", "secret", "generic", "api", "--from-literal=key=s3cret-value", "-n", lab.namespace)
    serving = {"env": {"ODD": ODD}, "api_key": {"kube": {"name": "api", "key": "key"}}}
    release = deliver.fn(spec(lab, "--label", ODD, serving=serving))["release"]
    engine = psutil.Process(process(lab, release))
    assert ODD in engine.cmdline()
    assert engine.environ()["ODD"] == ODD
    kinds = "configmaps,isvc,servingruntimes,deployments,services,jobs,pods,leases,events"
    everything = lab.cluster.kubectl("get", kinds, "-n", lab.namespace, "-o", "yaml", "--show-managed-fields")
    assert "secretKeyRef" in everything
    assert "s3cret-value" not in everything


def test_two_releases_that_need_all_gpus_are_refused_or_recreated(lab: Lab) -> None:
    refused_then_recreated(lambda **more: spec(lab, **more), lambda release: alone(lab, release))


def test_a_canary_gets_its_weight_through_a_gateway(lab: Lab) -> None:
    with running_gateway(lab.cluster, "127.0.0.1", free_port(), loopback) as gateway:
        lab.cluster.apply(gateway.gateway(lab.namespace))
        target = {"gateway": "gateway", "hostname": "chat.test"}
        first = deliver.fn(spec(lab, target=target))
        assert first["url"] == "http://chat.test:80"
        weights = set()

        def watched() -> bool:
            refs = live(lab, f"httproute/{NAME}")["spec"]["rules"][0]["backendRefs"]
            weights.add(tuple((ref["name"], ref["port"], ref["weight"]) for ref in refs))
            return run.done()

        rollout = {"strategy": "canary", "steps": [20], "soak": "3s"}
        with ThreadPoolExecutor(1) as pool:
            run = pool.submit(copy_context().run, deliver.fn, spec(lab, target=target, rollout=rollout))
            until(watched, 240, "the canary does not end")
        second = run.result()
        one, two = (f"{NAME}-{done['release']}-predictor" for done in (first, second))
        assert {((one, 80, 100),), ((one, 80, 80), (two, 80, 20)), ((two, 80, 100),)} <= weights
        assert status(lab.place, NAME).changes == ()


def test_pods_that_are_refused_while_the_service_says_ready_are_told(
    lab: Lab, kserve: KServe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "RETRIES", 0)  # the longer the outage, the later a ReplicaSet tries again
    wanted = spec(lab)
    release = deliver.fn(wanted)["release"]
    main = f"{NAME}-{release}"
    kserve.stop()
    try:
        lab.cluster.kubectl("delete", "pod", "-l", f"model-delivery/object={main}", "-n", lab.namespace)
        told = "the webhook inferenceservice.kserve-webhook-server.pod-mutator does not answer"
        until(lambda: told in getattr(readiness(lab, release), "why", ""), 30, lambda: str(readiness(lab, release)))
        ready = {one["type"]: one["status"] for one in live(lab, f"isvc/{main}")["status"]["conditions"]}
        assert ready["Ready"] == "True", "KServe hides it"
        with pytest.raises(Retryable, match=r"(?s)cannot call a webhook.*servingruntime.kserve-webhook-server"):
            deliver.fn(wanted)
    finally:
        kserve.start()
    assert deliver.fn(wanted)["result"] in ("unchanged", "healed")
    alone(lab, release)


def test_what_kserve_says_once_is_told_at_once(lab: Lab) -> None:
    release = deliver.fn(spec(lab))["release"]
    main = f"{NAME}-{release}"

    def failed(what: str) -> Failed:
        until(lambda: isinstance(readiness(lab, release), Failed), 30, lambda: f"{what}: {readiness(lab, release)}")
        state = readiness(lab, release)
        assert isinstance(state, Failed)
        assert what in str(state.finding)
        return state

    def changed(**runtime: Any) -> None:
        patch = json.dumps({"spec": runtime})
        lab.cluster.kubectl("patch", "servingruntime", main, "-n", lab.namespace, "--type=merge", "-p", patch)
        lab.cluster.kubectl("annotate", "isvc", main, "-n", lab.namespace, f"asked={len(str(runtime))}", "--overwrite")

    changed(disabled=True)
    failed("Specified runtime is disabled")
    changed(disabled=False, supportedModelFormats=[{"name": "other"}])
    failed("NoSupportingRuntime")
    lab.cluster.kubectl("delete", "isvc", main, "-n", lab.namespace)
    old = live(lab, "servingruntime/" + main)["metadata"]["labels"]
    annotations = {"serving.kserve.io/deploymentMode": "Knative"}
    model = {"modelFormat": {"name": "vLLM"}, "runtime": main, "storageUri": "pvc://small-models/x"}
    meta = {"name": main, "namespace": lab.namespace, "labels": old, "annotations": annotations}
    lab.cluster.apply(
        {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": meta,
            "spec": {"predictor": {"model": model}},
        }
    )
    assert "delete inferenceservice" in str(failed("into mode Knative").finding)
    lab.cluster.kubectl("delete", f"isvc/{main}", f"servingruntime/{main}", "-n", lab.namespace)
    assert isinstance(readiness(lab, release), InProgress)


def test_a_name_that_does_not_fit_kserve_is_refused(lab: Lab) -> None:
    for name in ("7b", "a" * 38):
        with pytest.raises(Refused, match=f"the name {name} does not fit KServe"):
            deliver.fn(spec(lab).model_copy(update={"name": name}))


def test_the_rendered_files_and_the_verbs(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(yaml.safe_dump(spec(lab).model_dump(mode="json")))

    def said(*args: str, code: int = 0) -> str:
        done = subprocess.run(
            [str(Path(sys.executable).with_name("deliver")), *args], capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        return done.stdout

    rendered = said("render", str(file))
    lab.cluster.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", input=rendered)
    assert f"InferenceService/{NAME}-" in said("plan", str(file))
    assert not lab.place.deliveries(), "a plan touches nothing"
    said("up", str(file))
    assert "unchanged" in said("plan", str(file))
    assert f"{NAME}: up at http://{NAME}.{lab.namespace}.svc:8000" in said("status", NAME, "-n", lab.namespace)
    assert "Starting timing server" in said("logs", str(file))
    assert f"http://{NAME}.{lab.namespace}.svc:8000/v1" in said("connect", str(file))
    assert f"InferenceService/{NAME}-" in said("down", NAME, "-n", lab.namespace)


def test_the_shipped_role_is_all_that_a_delivery_needs(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    role = document("rbac/role.yaml", "Role")
    less = role | {"rules": [rule for rule in role["rules"] if rule["apiGroups"] != ["serving.kserve.io"]]}
    wanted = spec(lab)
    monkeypatch.setenv("KUBECONFIG", str(deliverer(lab.cluster, lab.namespace, less, "less")))
    until(lambda: len(missing_rights(wanted, lab.place)) == 10, 20, "the authorizer follows its watch")
    with pytest.raises(
        Refused, match=rf"we may not create inferenceservices\.serving\.kserve\.io in namespace {lab.namespace}"
    ):
        deliver.fn(wanted)
    monkeypatch.setenv("KUBECONFIG", str(deliverer(lab.cluster, lab.namespace, role, "deliverer")))
    until(lambda: not missing_rights(wanted, lab.place), 20, "the authorizer follows its watch")
    assert deliver.fn(wanted)["result"] == "promoted"
    assert down(lab.place, NAME)
