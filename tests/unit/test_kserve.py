"""Target kserve as values: its objects, and what each condition and event of KServe's
comes to.
"""

from __future__ import annotations

from typing import Any

import pytest

from model_delivery.places.cluster.objects import from_object, to_object
from model_delivery.targets.kserve import INFERENCE_SERVICE, KServe, KServeKey
from model_delivery.values import Current, Desired, Failed, InProgress, Lock, Readiness, Ref, Release, Snapshot, World
from tests.parts.asked import asked

LOCK = Lock(
    snapshot=Snapshot(source="huggingface", key="a--b", commit="c" * 40, files=()),
    image="registry.example/vllm@sha256:" + "1" * 64,
)
TARGET = KServe(KServeKey(namespace="ns"))


def release(replicas: int = 1, **more: Any) -> Release:
    return Release("r1", TARGET.payload(asked(**more), LOCK), replicas)


def composed(one: Release, target: KServe = TARGET) -> dict[str, dict[str, Any]]:
    want = Desired("m", (one,), {one.id: 100}, target.address("m"))
    return {r.ref.kind.name: to_object(r, "ns") for r in target.compose(want)}


def test_a_release_is_a_runtime_and_a_service_which_kserve_makes_one_pod_of() -> None:
    limits = {"nvidia.com/gpu": 1, "memory": "64Gi"}
    pod = {"node_selector": {"gpu": "h100"}, "priority_class": "high", "annotations": {"a": "b"}, "shm": "2Gi"}
    made = composed(release(2, resources={"limits": limits}, pod=pod))
    runtime, predictor = made["ServingRuntime"]["spec"], made["InferenceService"]["spec"]["predictor"]
    (engine,) = runtime["containers"]
    assert (engine["name"], engine["args"][:2]) == ("kserve-container", ["--model", "/mnt/models"])
    assert set(runtime) == {"supportedModelFormats", "containers", "volumes"}
    assert runtime["volumes"][0]["emptyDir"]["sizeLimit"] == "2Gi"
    assert predictor["model"]["storageUri"] == f"pvc://m-models/models/huggingface/a--b/{'c' * 40}"
    assert predictor["model"]["resources"] == {
        "limits": {"nvidia.com/gpu": "1", "memory": "64Gi"},
        "requests": {"nvidia.com/gpu": "1", "memory": "64Gi"},
    }
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (2, 2)
    assert (predictor["nodeSelector"], predictor["priorityClassName"], predictor["annotations"]) == (
        {"gpu": "h100"},
        "high",
        {"a": "b"},
    )
    assert predictor["enableServiceLinks"] is False
    assert predictor["model"]["runtime"] == made["ServingRuntime"]["metadata"]["name"] == "m-r1"
    assert made["Service"]["spec"]["selector"] == predictor["labels"] == {"model-delivery/object": "m-r1"}


def test_a_chat_template_is_mounted_into_the_engine() -> None:
    made = composed(release(chat_template="{{ messages }}"))
    assert made["ConfigMap"]["data"] == {"chat_template.jinja": "{{ messages }}"}, "a file is no Go template"
    (engine,) = made["ServingRuntime"]["spec"]["containers"]
    mounts = {one["name"]: one["mountPath"] for one in engine["volumeMounts"]}
    assert engine["args"][engine["args"].index("--chat-template") + 1].startswith(mounts["config"])
    assert made["ServingRuntime"]["spec"]["volumes"][-1] == {"name": "config", "configMap": {"name": "m-r1"}}


def test_weights_go_to_the_predictors_services() -> None:
    target = KServe(KServeKey(namespace="ns", gateway="gateway", hostname="chat.test"))
    (backend,) = composed(release(), target)["HTTPRoute"]["spec"]["rules"][0]["backendRefs"]
    assert backend == {"name": "m-r1-predictor", "port": 80, "weight": 100}


def condition(status: str, reason: str = "", message: str = "") -> dict[str, Any]:
    return {"type": "PredictorReady", "status": status, "reason": reason, "message": message}


def pod(*, ready: bool) -> dict[str, Any]:
    state = {"running": {}} if ready else {"waiting": {"reason": "ContainerCreating"}}
    told = {"name": "kserve-container", "image": "i", "ready": ready, "state": state, "lastState": {}}
    conditions = [{"type": "Ready", "status": str(ready)}]
    status = {"phase": "Running" if ready else "Pending", "conditions": conditions, "containerStatuses": [told]}
    return {
        "metadata": {"name": "p", "labels": {"model-delivery/object": "m-r1"}},
        "spec": {"containers": []},
        "status": status,
    }


def event(reason: str, message: str, name: str = "m-r1-predictor-5f") -> dict[str, Any]:
    return {
        "involvedObject": {"kind": "ReplicaSet", "name": name},
        "reason": reason,
        "message": message,
        "type": "Warning",
    }


def readiness(
    status: dict[str, Any] | None, pods: tuple[Any, ...] = (), events: tuple[Any, ...] = (), replicas: int = 1
) -> Readiness:
    one = release(replicas)
    objects = {}
    if status is not None:
        live = composed(one)["InferenceService"]
        live["metadata"] |= {"resourceVersion": "1", "generation": 1}
        objects[Ref(INFERENCE_SERVICE, "m-r1")] = from_object(live | {"status": status}, INFERENCE_SERVICE)
    return TARGET.readiness(
        one, World("m", objects, 0.0, {"Pod": pods, "Event": events, "Node": (), "EndpointSlice": ()})
    )


READY = {"deploymentMode": "Standard", "conditions": [condition("True", "NewReplicaSetAvailable")]}
HOOK = 'Internal error occurred: failed calling webhook "inferenceservice.kserve-webhook-server.pod-mutator": connection refused'


def test_a_release_is_ready_when_kserve_and_all_its_pods_say_so() -> None:
    address = {"address": {"url": "http://m-r1-predictor.ns.svc.cluster.local"}}
    assert readiness(READY | address, (pod(ready=True),)) == Current("http://m-r1-predictor.ns.svc")
    headless = {"address": {"url": "http://m-r1-predictor.ns.svc.cluster.local:8080"}}
    assert readiness(READY | headless, (pod(ready=True),)) == Current("http://m-r1-predictor.ns.svc:8000"), (
        "no address of its own"
    )
    for status, pods, replicas in (
        (None, (), 1),
        ({}, (), 1),
        (READY, (), 1),
        (READY, (pod(ready=True), pod(ready=False)), 1),
        (READY, (pod(ready=True),), 2),
        ({"conditions": [condition("Unknown", "ReplicaSetUpdated")]}, (pod(ready=True),), 1),
    ):
        assert isinstance(readiness(status, pods, replicas=replicas), InProgress), (status, pods)


def test_a_manager_that_says_nothing_is_named() -> None:
    assert "does its controller manager run?" in str(readiness({}))


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("NoSupportingRuntime", "Specified runtime does not support specified framework/version"),
        ("RuntimeDisabled", "disabled"),
    ],
)
def test_what_kserve_cannot_serve_fails_with_its_words(reason: str, message: str) -> None:
    failure = {"transitionStatus": "InvalidSpec", "lastFailureInfo": {"reason": reason, "message": message}}
    state = readiness(READY | {"modelStatus": failure})
    assert isinstance(state, Failed)
    assert (reason in state.finding.what, state.finding.why) == (True, message)
    early = failure | {
        "lastFailureInfo": {"reason": "RuntimeNotRecognized", "message": "Waiting for runtime to become available"}
    }
    assert isinstance(readiness({"modelStatus": early}), InProgress), "it may see the service before the runtime"
    past = failure | {"transitionStatus": "UpToDate"}
    assert isinstance(readiness(READY | {"modelStatus": past}, (pod(ready=True),)), Current), "a failure of the past"


@pytest.mark.parametrize("mode", ["Knative", "Serverless", "ModelMesh"])
def test_a_service_in_another_mode_is_told(mode: str) -> None:
    state = readiness({"deploymentMode": mode, "conditions": [condition("Unknown")]})
    assert isinstance(state, Failed)
    assert mode in state.finding.what
    assert "kubectl delete inferenceservice m-r1" in state.finding.fix


def test_pods_that_are_refused_are_told_by_the_condition_or_by_events() -> None:
    quota = condition("False", "FailedCreate", 'pods "x" is forbidden: exceeded quota: few')
    state = readiness({"conditions": [quota]})
    assert isinstance(state, Failed)
    assert "quota is used up" in state.finding.what
    waits = readiness(READY, (), (event("FailedCreate", HOOK),))
    assert isinstance(waits, InProgress), "its server may come back"
    assert "pod-mutator does not answer" in waits.why
    assert isinstance(readiness(READY, (pod(ready=True),), (event("FailedCreate", HOOK),)), Current), (
        "an event of the past"
    )
    past = event("FailedCreate", 'pods "x" is forbidden: exceeded quota: few')
    assert isinstance(readiness({"conditions": [condition("Unknown")]}, (), (past,)), InProgress), (
        "an event outlives what it tells"
    )


def test_a_limit_that_the_spec_does_not_have_is_named() -> None:
    killed = pod(ready=False)
    killed["spec"]["containers"] = [{"name": "kserve-container", "resources": {"limits": {"memory": "2Gi"}}}]
    ended = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
    killed["status"]["containerStatuses"][0] |= {"state": ended, "restartCount": 0}
    state = readiness({"conditions": [condition("Unknown")]}, (killed,))
    assert isinstance(state, Failed)
    assert "its limit is 2Gi" in state.finding.why
    assert "serving.resources.limits.memory" in state.finding.fix


def test_events_that_say_nothing_of_the_service_are_left_out() -> None:
    noise = event("VirtualServiceCRDNotFound", "Istio VirtualService CRD not present", "m-r1")
    state = readiness({"conditions": [condition("Unknown", "ReplicaSetUpdated", "is progressing")]}, (), (noise,))
    assert state == InProgress("ReplicaSetUpdated: is progressing")
