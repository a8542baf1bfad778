"""Why a pod is not ready, from the API's own objects: what ends the wait, what does not,
and what the user is told.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model_delivery.diagnosis import pods
from model_delivery.targets.deployment import DeploymentKey
from model_delivery.targets.kubernetes.kinds import JOB
from model_delivery.values import (
    Ended,
    Failed,
    InProgress,
    Observed,
    Readiness,
    Ref,
    Resource,
    Started,
    StepState,
    World,
)
from model_delivery.verbs.quoting import hushed

LOGS = Path(__file__).parent / "engine-logs"
NAME = "m-r1"


def pod(
    *,
    waiting: tuple[str, str] | None = None,
    ended: dict[str, Any] | None = None,
    conditions: tuple[dict[str, Any], ...] = (),
    log: str = "",
    **status: Any,
) -> dict[str, Any]:
    """A pod with one engine; ``ended``: how its last container did."""
    state: dict[str, Any] = {"waiting": {"reason": waiting[0], "message": waiting[1]}} if waiting else {"running": {}}
    container = {
        "name": "engine",
        "image": "registry.example/engine:1",
        "ready": False,
        "restartCount": status.pop("restarts", 0),
        "state": state,
    }
    container["lastState"] = {"terminated": ended} if ended else {}
    requests = {"nvidia.com/gpu": "4", "memory": "8Gi", "cpu": "500m"}
    spec = {"containers": [{"name": "engine", "resources": {"requests": requests}}]}
    said = {
        "phase": "Pending" if waiting else "Running",
        "containerStatuses": [container],
        "conditions": list(conditions),
        **status,
    }
    return {"metadata": {"name": f"{NAME}-x"}, "spec": spec, "status": said, "log": log}


def unscheduled(message: str, reason: str = "Unschedulable") -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
    return pod(waiting=("", ""), conditions=(condition,)) | {"status": {"phase": "Pending", "conditions": [condition]}}


def node(**allocatable: str) -> dict[str, Any]:
    return {
        "status": {
            "allocatable": {
                "cpu": "8",
                "memory": "64Gi",
                "pods": "110",
                **{k.replace("_", "/"): v for k, v in allocatable.items()},
            }
        }
    }


def event(reason: str, message: str, kind: str = "Pod", name: str = f"{NAME}-x") -> dict[str, Any]:
    return {
        "reason": reason,
        "message": message,
        "involvedObject": {"kind": kind, "name": name},
        "lastTimestamp": "2026-01-01T00:00:00Z",
    }


def judged(
    *seen: dict[str, Any],
    events: tuple[dict[str, Any], ...] = (),
    nodes: tuple[dict[str, Any], ...] = (),
    **deployment: Any,
) -> Readiness:
    return pods.engine(seen, {"Event": events, "Node": nodes}, deployment, deployment.pop("claim", {}), NAME)


PULL = 'failed to pull and unpack image "registry.example/engine:1": failed to resolve reference "registry.example/engine:1": '


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (PULL + "registry.example/engine:1: not found", "there is no image registry.example/engine:1"),
        (PULL + "unexpected status from HEAD request: 404 Not Found", "there is no image"),
        (
            PULL + "pull access denied, repository does not exist or may require authorization: 401 Unauthorized",
            "does not let the cluster pull",
        ),
        (PULL + "failed to authorize: 403 Forbidden", "does not let the cluster pull"),
        (PULL + "unexpected status code 429 Too Many Requests", None),
        (PULL + "unexpected status from GET request: 503 Service Unavailable", None),
        (PULL + "dial tcp: i/o timeout", None),
    ],
)
@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff"])
def test_a_pull_that_cannot_succeed_ends_the_wait_and_a_busy_registry_does_not(
    reason: str, said: str, told: str | None
) -> None:
    state = judged(pod(waiting=(reason, said)))
    if told is None:
        assert isinstance(state, InProgress)
        assert "registry is busy" in state.why
    else:
        assert isinstance(state, Failed)
        assert told in state.finding.what
        assert state.finding.fix
    backed_off = judged(
        pod(waiting=("ImagePullBackOff", "Back-off pulling image")),
        events=(event("Failed", f"Failed to pull image: {said}"),),
    )
    assert type(backed_off) is type(state), "the kubelet may tell the cause in an event only"


def test_waiting_for_room_is_no_failure_unless_no_node_could_ever_hold_it() -> None:
    seen = unscheduled("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")
    for nodes in ((), (node(),), (node(**{"nvidia.com_gpu": "8"}),)):
        state = judged(seen, nodes=nodes)
        assert isinstance(state, InProgress)
        assert "Insufficient nvidia.com/gpu" in state.why
    never = judged(seen, nodes=(node(**{"nvidia.com_gpu": "2"}),))
    assert isinstance(never, Failed)
    assert "nvidia.com/gpu: 4 wanted, the largest node has 2" in never.finding.why


def test_a_queued_pod_waits() -> None:
    state = judged(unscheduled("Scheduling is blocked due to non-empty scheduling gates", "SchedulingGated"))
    assert state == InProgress("queued: the pod waits for its queue")


def test_claims() -> None:
    missing = judged(unscheduled('persistentvolumeclaim "models" not found'))
    assert isinstance(missing, Failed)
    assert "claim models is not there" in missing.finding.what
    provisioning = event(
        "ProvisioningFailed", 'storageclass.storage.k8s.io "fast" not found', "PersistentVolumeClaim", "models"
    )
    pending = judged(unscheduled("pod has unbound immediate PersistentVolumeClaims"), events=(provisioning,))
    assert isinstance(pending, InProgress)
    assert '"fast" not found' in pending.why
    lost = judged(pod(), claim={"phase": "Lost"})
    assert isinstance(lost, Failed)


def test_out_of_memory() -> None:
    state = judged(pod(waiting=("CrashLoopBackOff", "back-off"), ended={"reason": "OOMKilled", "exitCode": 137}))
    assert isinstance(state, Failed)
    assert "more memory than its limit" in state.finding.what
    assert "serving.resources.limits.memory" in state.finding.fix


@pytest.mark.parametrize("file", sorted(LOGS.glob("*.txt")), ids=lambda path: path.stem)
def test_a_crash_is_told_in_the_engines_own_words(file: Path) -> None:
    ended = {"reason": "Error", "exitCode": 1}
    state = judged(pod(waiting=("CrashLoopBackOff", "back-off"), ended=ended, log=file.read_text(), restarts=3))
    assert isinstance(state, Failed)
    assert state.finding.what.startswith("the engine")
    assert f"pod {NAME}-x: exit code 1, 3 restarts" in state.finding.evidence


def test_a_passing_fault_may_pass_and_exit_0_is_a_failure() -> None:
    busy = pod(
        waiting=("CrashLoopBackOff", ""),
        ended={"reason": "Error", "exitCode": 1},
        log="OSError: [Errno 98] Address already in use",
    )
    assert isinstance(judged(busy), InProgress)
    busy["status"]["containerStatuses"][0]["restartCount"] = 3
    assert isinstance(judged(busy), Failed)
    ended = judged(pod(ended={"reason": "Completed", "exitCode": 0}, log="bye"))
    assert isinstance(ended, Failed)
    assert "exit code 0, which for a server is a failure" in ended.finding.why


def test_of_a_pod_whose_secrets_are_not_known_no_word_of_its_log_is_quoted() -> None:
    ended = {"exitCode": 1, "reason": "Error", "message": "ValueError: 401 with tok-Q7Q7Q7"}
    for log in ("", "ValueError: 401 with tok-Q7Q7Q7"):
        assert "tok-Q7Q7Q7" in str(judged(pod(ended=ended, restarts=4, log=log)))
        assert "tok-Q7Q7Q7" not in str(judged(hushed(pod(ended=ended, restarts=4, log=log))))


def test_still_loading_says_what_it_does() -> None:
    log = "INFO loading\nLoading safetensors checkpoint shards:  40% Completed | 2/5 [00:00<?, ?it/s]\n"
    said = judged(pod(log=log))
    assert isinstance(said, InProgress)
    assert said.why == "the engine is starting: the weights are loaded, file 2 of 5"


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            'pods "m" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1',
            "quota is used up",
        ),
        (
            'pods "m" is forbidden: violates PodSecurity "restricted:latest": host namespaces',
            "Pod Security level refuses",
        ),
        ('error looking up service account ns/x: serviceaccount "x" not found', "service account is not there"),
        ('admission webhook "no.example" denied the request: no', "the cluster refuses the pod"),
    ],
)
def test_a_pod_that_may_not_be_made(message: str, told: str) -> None:
    state = judged(conditions=[{"type": "ReplicaFailure", "status": "True", "message": message}])
    assert isinstance(state, Failed)
    assert told in state.finding.what
    assert state.finding.why == message


def test_a_secret_that_is_not_there() -> None:
    state = judged(pod(waiting=("CreateContainerConfigError", 'secret "api" not found')))
    assert isinstance(state, Failed)
    assert state.finding.why == 'secret "api" not found'


def test_eviction_for_its_own_limit_is_a_failure_and_for_the_nodes_sake_is_not() -> None:
    own = judged(
        pod(
            phase="Failed",
            reason="Evicted",
            message="Pod ephemeral local storage usage exceeds the total limit of containers 1Gi.",
        )
    )
    assert isinstance(own, Failed)
    pressed = judged(pod(phase="Failed", reason="Evicted", message="The node was low on resource: memory."))
    assert isinstance(pressed, InProgress)
    api = {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting",
    }
    assert isinstance(judged(pod(conditions=(api,))), InProgress)


def job_pod(**states: dict[str, Any]) -> dict[str, Any]:
    statuses = [
        {"name": name, "image": f"{name}:1", "ready": False, "state": state, "lastState": {}}
        for name, state in states.items()
    ]
    return {
        "metadata": {"name": "j-x"},
        "spec": {"containers": []},
        "status": {"phase": "Running", "containerStatuses": statuses},
    }


def test_a_step_starts_ends_or_cannot() -> None:
    def seen(one: dict[str, Any] | None, *, finished: bool = False) -> StepState:
        return pods.step([one] if one else [], {"Event": (), "Node": ()}, "j", finished=finished)

    assert isinstance(seen(None), InProgress)
    assert seen(None, finished=True) == Ended()
    assert seen(job_pod(step={"running": {}})) == Started()
    unpulled = {"waiting": {"reason": "ErrImagePull", "message": PULL + "not found"}}
    assert isinstance(seen(job_pod(step={"running": {}}, image=unpulled)), Failed), (
        "the serving image must be there too"
    )
    assert isinstance(
        seen(job_pod(step={"terminated": {"exitCode": 0}}, image={"waiting": {"reason": "ContainerCreating"}})),
        Started | InProgress,
    )
    killed = seen(job_pod(step={"terminated": {"exitCode": 137, "reason": "OOMKilled"}}), finished=True)
    assert isinstance(killed, Failed)
    assert "runner.resources" in killed.finding.fix


def test_a_pod_that_is_ended_at_a_deadline_of_somebodys_is_told_so() -> None:
    ended = {"name": "step", "state": {"terminated": {"exitCode": 137, "reason": "Error"}}}
    said: dict[str, Any] = {
        "phase": "Failed",
        "reason": "DeadlineExceeded",
        "message": "longer than the specified deadline",
    }
    late = {"metadata": {"name": "j-x"}, "spec": {}, "status": {**said, "containerStatuses": [ended]}}
    of_step = pods.step([late], {"Event": (), "Node": ()}, "j", finished=True)
    assert isinstance(of_step, Failed)
    assert "activeDeadlineSeconds" in of_step.finding.fix
    of_engine = judged(pod(ended={"reason": "Error", "exitCode": 137}, **said))
    assert isinstance(of_engine, InProgress), "its Deployment makes another"
    assert "longer than the specified deadline" in of_engine.why


def test_a_fetch_is_read_while_the_image_is_pulled_beside_it_and_both_must_end() -> None:
    jobs = {name: Ref(JOB, name) for name in ("m-fetch-1", "m-fetch-1-image")}

    def seen(fetch: dict[str, Any], image: dict[str, Any], *, pulled: bool = False) -> StepState:
        made = {"m-fetch-1": job_pod(step=fetch), "m-fetch-1-image": job_pod(image=image)}
        for name, one in made.items():
            one["metadata"] = {"name": f"{name}-x", "uid": name, "labels": {"batch.kubernetes.io/job-name": name}}
        ended = {"m-fetch-1": "terminated" in fetch, "m-fetch-1-image": pulled}
        objects = {
            ref: Observed(Resource(ref, "step", "m", {}), "", {"finished": ended[name]}) for name, ref in jobs.items()
        }
        world = World("m", objects, 0.0, {"Pod": tuple(made.values()), "Event": (), "Node": ()})
        return DeploymentKey(kind="deployment").target().step_state(jobs["m-fetch-1"], world)

    pulling = {"waiting": {"reason": "ContainerCreating"}}
    done, pulled = {"terminated": {"exitCode": 0}}, {"terminated": {"exitCode": 0}}
    assert seen({"running": {}}, pulling) == Started("m-fetch-1")
    state = seen(done, pulling)
    assert isinstance(state, Started), "its result can be read"
    assert (state.mark, bool(state.beside)) == ("m-fetch-1", True)
    assert seen(done, pulled, pulled=True) == Ended("m-fetch-1", 0)
    no_command = {"terminated": {"exitCode": 128, "reason": "StartError", "message": 'exec: "true": not found'}}
    assert seen({"running": {}}, no_command) == Started("m-fetch-1"), "it is there, and that is all"
    denied = {"waiting": {"reason": "ErrImagePull", "message": PULL + "not found"}}
    assert isinstance(seen({"running": {}}, denied), Failed)
