"""What a pod's node, its other containers and its probes say of it; each is told in its
own words, with a remedy that the words give.
"""

from __future__ import annotations

from typing import Any

import pytest

from model_delivery.base import Finding
from model_delivery.diagnosis import pods
from model_delivery.diagnosis.scheduling import number
from model_delivery.values import Failed, InProgress, Started
from tests.unit.test_pods import NAME, PULL, event, judged, pod, unscheduled

LOADING = "INFO 11-23 15:40:12 [cpu_model_runner.py:68] Starting to load model m..."
TOLD = "the engine is starting: the weights are loaded"


def told(state: object) -> Finding:
    assert isinstance(state, Failed), state
    return state.finding


def waits(state: object) -> InProgress:
    assert isinstance(state, InProgress), state
    return state


def refused(reason: str, message: str = "Pod was rejected") -> dict[str, Any]:
    spec = {"containers": [], "nodeName": "gpu-1"}
    status = {"phase": "Failed", "reason": reason, "message": message}
    return {"metadata": {"name": f"{NAME}-x"}, "spec": spec, "status": status}


def other(name: str, restarts: int, **terminated: Any) -> dict[str, Any]:
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
    last = {"terminated": {"exitCode": 1, "reason": "Error", **terminated}}
    return {"name": name, "image": "x", "ready": False, "restartCount": restarts, "state": waiting, "lastState": last}


@pytest.mark.parametrize("reason", ["UnexpectedAdmissionError", "OutOfnvidia.com/gpu", "NodeAffinity"])
def test_a_pod_that_its_node_refuses_is_told_and_one_alone_is_waited_for(reason: str) -> None:
    once = waits(judged(refused(reason, "devices unavailable")))
    assert "gpu-1 refuses the pod" in once.why
    assert "devices unavailable" in once.why
    again = told(judged(*[refused(reason)] * 5))
    assert (again.code, again.evidence) == ("pod.rejected", ("5 pods one after the other",))


def test_a_pod_that_was_refused_does_not_hide_one_that_lives() -> None:
    living = pod(log=LOADING)
    for seen in ([refused("NodeAffinity"), living], [living, refused("NodeAffinity")]):
        assert waits(judged(*seen)).why == TOLD


def test_an_image_that_has_no_command_true_is_pulled_all_the_same() -> None:
    ended = {
        "terminated": {"exitCode": 128, "reason": "StartError", "message": 'exec: "true": executable file not found'}
    }
    states = {"step": {"running": {}}, "image": ended}
    statuses = [{"name": name, "image": "x", "ready": False, "state": state} for name, state in states.items()]
    seen: dict[str, Any] = {"metadata": {"name": "fetch-x"}, "spec": {"containers": []}, "status": {"phase": "Running"}}
    seen["status"]["containerStatuses"] = statuses
    assert isinstance(pods.step([seen], {"Event": ()}, "fetch", finished=False), Started)


def test_a_node_that_shuts_down_is_waited_for() -> None:
    message = "Pod was terminated in response to imminent node shutdown."
    assert "ended with gpu-1" in waits(judged(*[refused("Terminated", message)] * 6)).why


@pytest.mark.parametrize("where", ["initContainerStatuses", "containerStatuses"])
def test_a_container_that_is_not_the_engine_and_ends_again_and_again(where: str) -> None:
    def seen(restarts: int, **terminated: Any) -> object:
        made = pod(log=LOADING)
        made["status"][where] = [*made["status"].get(where, ()), other("proxy", restarts, **terminated)]
        return judged(made)

    assert "container proxy ends again and again" in waits(seen(1)).why
    failed = told(seen(4, message="iptables: Permission denied"))
    assert failed.code == "pod.container-crashed"
    assert "iptables: Permission denied" in failed.why
    assert "killed: it used more memory" in told(seen(4, reason="OOMKilled", exitCode=137)).what
    assert "serving.resources" not in told(seen(4, reason="OOMKilled", exitCode=137)).fix


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("nvidia-container-cli: requirement error: unsatisfied condition: cuda>=13.0", "pod.driver-too-old"),
        ('exec: "--model": executable file not found in $PATH: unknown', "pod.no-such-command"),
        ("exec /usr/bin/vllm: exec format error", "image.wrong-platform"),
        ("something that nobody knows", "pod.container-unmade"),
    ],
)
def test_a_container_that_cannot_be_started(message: str, code: str) -> None:
    ended = {"reason": "StartError", "exitCode": 128, "message": message}
    for seen in (
        pod(waiting=("RunContainerError", message)),
        pod(waiting=("CrashLoopBackOff", "back-off"), ended=ended, restarts=2),
    ):
        finding = told(judged(seen))
        assert finding.code == code
        assert message in finding.why


def test_an_image_for_another_processor_is_named_where_only_the_log_says_so() -> None:
    ended = {"reason": "Error", "exitCode": 255}
    log = "exec /usr/local/bin/vllm: exec format error"
    finding = told(judged(pod(waiting=("CrashLoopBackOff", ""), ended=ended, log=log, restarts=1)))
    assert finding.code == "image.wrong-platform"
    assert "serving.pod.node_selector" in finding.fix


@pytest.mark.parametrize("code", [0, 137, 143])
@pytest.mark.parametrize(("probe", "fix"), [("startup", "serving.startup_timeout"), ("liveness", "deliver logs")])
def test_an_engine_that_the_kubelet_ends_because_a_probe_fails(code: int, probe: str, fix: str) -> None:
    events = (
        event("Unhealthy", f"{probe.title()} probe failed: connect: connection refused"),
        event("Killing", f"Container engine failed {probe} probe, will be restarted"),
    )
    ended = {"reason": "Error", "exitCode": code}
    log = "Traceback (most recent call last):\nKeyboardInterrupt: terminated"
    finding = told(judged(pod(waiting=("CrashLoopBackOff", ""), ended=ended, log=log, restarts=5), events=events))
    assert finding.code == "engine.probe-failed"
    assert "connection refused" in finding.why
    assert fix in finding.fix


def test_an_engine_that_the_kubelet_ends_because_its_hook_cannot_be_run() -> None:
    message = 'PostStartHook failed: exec: "sh": executable file not found in $PATH'
    events = (event("FailedPostStartHook", message), event("Killing", "FailedPostStartHook"))
    ended = {"reason": "Error", "exitCode": 137}
    finding = told(judged(pod(waiting=("CrashLoopBackOff", ""), ended=ended, restarts=1), events=events))
    assert (finding.code, finding.why) == ("engine.hook-failed", message)
    assert "serving.readahead" in finding.fix


@pytest.mark.parametrize(
    ("message", "why", "fix"),
    [
        ("1 node(s) had untolerated taint {nvidia.com/gpu: present}", "taints", "serving.pod.tolerations"),
        ("3 node(s) didn't match Pod's node affinity/selector", "not selected", "serving.pod.node_selector"),
        ("3 node(s) had volume node affinity conflict", "volume cannot be reached", "storage.claim"),
        ("1 node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod", "one pod", "recreate"),
        ("1 Insufficient nvidia.com/gpu", "no node has room", "add such a node"),
    ],
)
def test_why_no_node_will_do_and_which_field_of_the_spec_decides_it(message: str, why: str, fix: str) -> None:
    state = waits(judged(unscheduled(f"0/3 nodes are available: {message}.")))
    assert why in state.why
    assert message in state.why
    assert fix in state.fix


def test_a_claim_without_a_class_is_told_by_a_normal_event() -> None:
    message = "no persistent volumes available for this claim and no storage class is set"
    said = {**event("FailedBinding", message, "PersistentVolumeClaim", "models"), "type": "Normal"}
    state = waits(judged(unscheduled("pod has unbound immediate PersistentVolumeClaims"), events=(said,)))
    assert message in state.why
    assert "storage.storage_class" in state.fix


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ('Head "https://r/v2/": tls: failed to verify certificate: x509: unknown', "image.registry-certificate"),
        ('Head "https://r/v2/": http: server gave HTTP response to HTTPS client', "image.registry-http"),
        ("no basic auth credentials", "image.denied"),
        ("no match for platform in manifest: not found", "image.wrong-platform"),
    ],
)
def test_a_registry_that_cannot_be_used(message: str, code: str) -> None:
    assert told(judged(pod(waiting=("ErrImagePull", PULL + message)))).code == code


def test_an_image_that_is_never_pulled_and_a_node_without_space() -> None:
    never = pod(waiting=("ErrImageNeverPull", "is not present with pull policy of Never"))
    assert told(judged(never)).code == "image.never-pulled"
    full = waits(judged(pod(waiting=("ErrImagePull", PULL + "write /var/lib: no space left on device"))))
    assert "disk" in full.fix


def test_a_volume_that_another_node_holds() -> None:
    held = event("FailedAttachVolume", 'Multi-Attach error for volume "pvc-1" Volume is already used by pod(s) m-r0')
    state = waits(judged(pod(waiting=("ContainerCreating", "")), events=(held,)))
    assert "m-r0" in state.why
    assert "recreate" in state.fix


def test_an_empty_directory_over_its_limit() -> None:
    message = 'Usage of EmptyDir volume "tmp" exceeds the limit "1Gi". '
    assert told(judged(pod(phase="Failed", reason="Evicted", message=message))).code == "pod.evicted"


@pytest.mark.parametrize(
    ("message", "code", "fix"),
    [
        ("exceeded quota: q, requested: pods=1, used: pods=9, limited: pods=9", "pod.quota", "end other pods"),
        ("exceeded quota: q, requested: requests.cpu=4, used: requests.cpu=8", "pod.quota", "serving.resources"),
        ("exceeded quota: q, requested: limits.cpu=4,pods=1, used: limits.cpu=0,pods=9", "pod.quota", "end other pods"),
        ("exceeded quota: q, requested: requests.storage=9Gi, used: requests.storage=0", "pod.quota", "storage.size"),
        ("exceeded quota: q, requested: count/configmaps=1, used: count/configmaps=9", "pod.quota", "what it counts"),
        ("failed quota: c: must specify limits.cpu for: engine", "pod.quota-unstated", "serving.resources"),
        ("maximum memory usage per Container is 32Gi, but limit is 64Gi", "pod.limit-range", "serving.resources"),
        ("unable to validate against any security context constraint: []", "pod.security-context", "serving.pod"),
        ("no PriorityClass with name high was found", "pod.no-class", "serving.pod"),
        ('pod rejected: RuntimeClass "nvidia" not found', "pod.no-class", "serving.pod"),
    ],
)
def test_what_the_namespace_does_not_allow(message: str, code: str, fix: str) -> None:
    failure = {"type": "ReplicaFailure", "status": "True", "message": f'pods "m" is forbidden: {message}'}
    finding = told(judged(conditions=[failure]))
    assert finding.code == code
    assert fix in finding.fix


@pytest.mark.parametrize(
    ("quantity", "value"),
    [
        ("8", 8),
        ("500m", 0.5),
        ("1e11", 1e11),
        ("2Ei", 2 * 2**60),
        ("1u", 1e-6),
        ("100n", 1e-7),
        ("1k", 1000),
        ("1.5G", 1.5e9),
        ("3E", 3e18),
        ("12E2", 1200),
    ],
)
def test_quantities_are_numbers_in_every_form_of_the_api(quantity: str, value: float) -> None:
    assert number(quantity) == pytest.approx(value)


MULTI = 'Multi-Attach error for volume "pvc-1" Volume is already exclusively attached to one node'


def mounting(name: str, node: str | None, phase: str, **status: Any) -> dict[str, Any]:
    volumes = [{"name": "models", "persistentVolumeClaim": {"claimName": "weights"}}]
    spec = {"containers": [], "volumes": volumes} | ({"nodeName": node} if node else {})
    return {"metadata": {"name": name}, "spec": spec, "status": {"phase": phase, **status}}


def beside(seen: dict[str, Any], *others: dict[str, Any], events: tuple[dict[str, Any], ...] = ()) -> Any:
    return pods.engine([seen], {"Event": events, "Node": (), "Pod": (seen, *others)}, {}, {}, NAME)


def test_a_claim_that_a_living_pod_has_on_another_node_is_told_with_its_holder() -> None:
    attach = event("FailedAttachVolume", MULTI)
    late = event("FailedMount", "Unable to attach or mount volumes: timed out waiting for the condition")
    new, old = mounting(f"{NAME}-x", "b", "Pending"), mounting("m-old", "a", "Running")
    finding = told(beside(new, old, events=(attach, {**late, "lastTimestamp": "2026-01-02T00:00:00Z"})))
    assert finding.code == "claim.held-elsewhere"
    assert finding.what == "the claim weights is held on a by the pod m-old"
    assert "rollout.strategy: recreate" in finding.fix


def test_a_claim_whose_holder_goes_is_waited_for() -> None:
    going = mounting("m-old", "a", "Running")
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    state = waits(beside(mounting(f"{NAME}-x", "b", "Pending"), going, events=(event("FailedAttachVolume", MULTI),)))
    assert "still on another node" in state.why


@pytest.mark.parametrize("rule", ["pod affinity rules", "Pod's node affinity/selector"])
def test_no_room_beside_the_pod_that_has_the_claim_is_told_with_it(rule: str) -> None:
    message = f"0/2 nodes are available: 1 Insufficient cpu, 1 node(s) didn't match {rule}."
    no = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    new, old = mounting(f"{NAME}-x", None, "Pending", conditions=[no]), mounting("m-old", "a", "Running")
    state = waits(beside(new, old))
    assert state.why.startswith("the claim weights is held on a by the pod m-old, and there is no room there")
    assert "recreate" in state.fix
    assert "serving.pod" not in state.fix
