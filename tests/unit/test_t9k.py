"""Target t9k as values: the seed's objects, a user's text, and what each condition and
event of T9k's manuals comes to.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from model_delivery.base import Refused
from model_delivery.cli.release import render
from model_delivery.places.cluster.objects import from_object, to_object
from model_delivery.spec import load_spec, parse_spec
from model_delivery.targets.t9k import ML_SERVICE, T9k, T9kKey
from model_delivery.values import (
    Address,
    Capabilities,
    Current,
    Desired,
    Failed,
    InProgress,
    Lock,
    Payload,
    Readiness,
    Ref,
    Release,
    Snapshot,
    World,
    stages,
)
from model_delivery.verbs import plan as plans
from tests.parts.asked import asked
from tests.parts.t9k.template import filled

# The seed's facts: what T9k's vLLM example and its published variants make by hand.
MODEL_PATH = "/var/lib/t9k/model"
ARGS = ["--model={{.MODEL_PATH}}", "--served-model-name={{.MODEL_NAME}}"]  # and --trust-remote-code, which we refuse
SEED = {
    "codellama-7b": {"gpus": "1", "more": []},
    "codellama-70b": {"gpus": "2", "more": ["--tensor-parallel-size=2"]},
    "mistral-7b": {"gpus": "1", "more": []},
}


def without(made: Any, *keys: str) -> Any:
    """What the seed's example does not have, and may differ (its objects.md says why)."""
    if isinstance(made, dict):
        return {key: without(value, *keys) for key, value in made.items() if key not in keys}
    return [without(one, *keys) for one in made] if isinstance(made, list) else made


@pytest.mark.parametrize("name", SEED)
def test_the_deliveries_render_to_the_seeds_objects(name: str) -> None:
    (*claims, runtime, given), warnings = plans.render(load_spec(Path(f"deliveries/{name}.yaml")), offline=True)
    if name == "codellama-7b":
        (claim,) = claims
        assert (claim["kind"], claim["metadata"]["name"]) == ("PersistentVolumeClaim", "vllm")
        assert claim["spec"]["resources"] == {"requests": {"storage": "100Gi"}}
    else:  # it is named without a size: the first delivery's
        assert not claims
        assert any("the claim vllm must be there" in warning for warning in warnings)
    limits = {"cpu": "4", "memory": "64Gi", "nvidia.com/gpu": SEED[name]["gpus"]}
    container = {
        "name": "user-container", "image": "vllm/vllm-openai:v0.33.0", "args": [*ARGS, *SEED[name]["more"]], "ports": [{"containerPort": 8000}],
        "resources": {"limits": limits}, "volumeMounts": [{"name": "dshm", "mountPath": "/dev/shm"}],  # noqa: S108
    }  # fmt: skip
    assert runtime["metadata"]["name"].startswith(f"{name}-")
    assert without(runtime, "metadata", "env") == {
        "apiVersion": "tensorstack.dev/v1beta1",
        "kind": "MLServiceRuntime",
        "spec": {
            "enabled": True,
            "template": {
                "spec": {"containers": [container], "volumes": [{"name": "dshm", "emptyDir": {"medium": "Memory"}}]}
            },
        },
    }
    predictor = {
        "minReplicas": 1,
        "model": {"runtime": runtime["metadata"]["name"], "parameters": {"MODEL_PATH": MODEL_PATH, "MODEL_NAME": name}},
        "containersResources": [{"name": "user-container", "resources": {"limits": limits}}],
    }
    release = given["spec"]["default"]
    (entry,) = given["spec"]["releases"]
    assert given["metadata"]["name"] == name
    assert without(given, "metadata", "template", "maxReplicas", "storage") == {
        "apiVersion": "tensorstack.dev/v1beta1",
        "kind": "MLService",
        "spec": {"default": release, "releases": [{"name": release, "predictor": predictor}]},
    }
    assert set(entry["predictor"]["template"]) == {"metadata"}
    assert entry["predictor"]["maxReplicas"] == 1
    repo = load_spec(Path(f"deliveries/{name}.yaml")).model.repo
    assert entry["predictor"]["storage"] == {
        "pvc": {"name": "vllm", "subPath": f"models/huggingface/{repo.replace('/', '--')}/main"}
    }


def test_only_a_startup_timeout_of_ones_own_sets_a_variable() -> None:
    made = {
        name: plans.render(load_spec(Path(f"deliveries/{name}.yaml")), offline=True)[0][-2]["spec"]["template"]
        for name in SEED
    }
    env = {name: one["spec"]["containers"][0].get("env") for name, one in made.items()}
    assert env == {
        "codellama-7b": None,
        "codellama-70b": [{"name": "VLLM_ENGINE_READY_TIMEOUT_S", "value": "3600"}],
        "mistral-7b": None,
    }
    assert made["codellama-70b"]["metadata"]["annotations"] == {"serving.knative.dev/progress-deadline": "3660s"}


def test_the_notebook_lies_on_the_claim_and_is_called_as_it() -> None:
    spec = load_spec(Path("deliveries/codellama-7b.yaml"))
    made, _ = plans.render(
        spec.model_copy(update={"storage": spec.storage.model_copy(update={"notebook": True})}), offline=True
    )
    (notebook,) = [one for one in made if one["kind"] == "Notebook"]
    assert notebook["metadata"]["name"] == "vllm"
    assert notebook["spec"]["type"] == "jupyter"
    pod = notebook["spec"]["template"]["spec"]
    assert pod["volumes"] == [{"name": "workingdir", "persistentVolumeClaim": {"claimName": "vllm"}}]
    assert pod["containers"][0]["volumeMounts"] == [{"name": "workingdir", "mountPath": "/t9k/mnt"}]


def test_a_release_whose_id_looks_like_a_number_stays_text(tmp_path: Path) -> None:
    """kubectl reads 81e1067962 as a number, PyYAML does not: one id in 140."""
    given = yaml.safe_load(Path("deliveries/mistral-7b.yaml").read_text())
    file = tmp_path / "spec.yaml"

    def rendered(seed: int) -> str:
        given["serving"]["args"] = [f"--seed={seed}"]
        made, _ = plans.render(parse_spec(given), offline=True)
        return str(made[-1]["spec"]["default"])

    seed = next(seed for seed in range(10**4) if re.fullmatch(r"\d+e\d+", rendered(seed)))
    given["serving"]["args"] = [f"--seed={seed}"]
    file.write_text(yaml.safe_dump(given))
    printed = CliRunner().invoke(render, ["--offline", str(file)])
    assert f"default: '{rendered(seed)}'" in printed.output


LOCK = Lock(
    snapshot=Snapshot(source="huggingface", key="a--b", commit="c" * 40, files=()),
    image="registry.example/vllm@sha256:" + "1" * 64,
)
TARGET = T9k(T9kKey(namespace="ns"))
NOTHING = Payload(names=(), args=())


def release(name: str = "r1", **more: Any) -> Release:
    return Release(name, TARGET.payload(asked(**more), LOCK))


def composed(*releases: Release, target: T9k = TARGET, **shares: int) -> dict[str, dict[str, Any]]:
    want = Desired("m", releases, shares, target.address("m"))
    return {r.ref.kind.name: to_object(r, "ns") for r in target.compose(want)}


ODD = 'it\'s {{ .Values }} {{{{x}}}} `$(HOME)` $$ "{{`" {{- end'


def test_a_users_argument_reaches_the_engine_as_it_is_however_the_runtime_is_filled_in() -> None:
    made = composed(release("r1", args=["--x", ODD]), r1=100)
    args = made["MLServiceRuntime"]["spec"]["template"]["spec"]["containers"][0]["args"]
    parameters = made["MLService"]["spec"]["releases"][0]["predictor"]["model"]["parameters"]
    told = [f"--model={MODEL_PATH}", "--served-model-name=m", "--x", ODD.replace("$", "$$")]  # the kubelet makes $$ a $
    assert filled(args, parameters) == told


def test_text_that_can_be_neither_kept_nor_escaped_is_refused_by_name() -> None:
    refused: dict[str, dict[str, Any]] = {
        "serving.env": {"env": {"A": "{{x}}"}},
        "serving.pod": {"pod": {"annotations": {"a": "{{x}}"}}},
    }
    for field, more in refused.items():
        with pytest.raises(Refused, match=f"{field} holds {{{{"):
            release(**more)


def test_what_a_pod_is_asked_for() -> None:
    pod = {
        "node_selector": {"gpu": "h100"},
        "shm": "8Gi",
        "security_context": {"runAsUser": 7},
        "annotations": {"autoscaling.knative.dev/target": "3"},
    }
    one = release(
        "r1",
        model_names=("m", "other"),
        pod=pod,
        chat_template="{{ x }}",
        replicas={"min": 1, "max": 4},
        api_key={"kube": {"name": "k", "key": "a"}},
    )
    made = composed(one, r1=100, target=T9k(T9kKey(namespace="ns", queue="default")))
    template = made["MLServiceRuntime"]["spec"]["template"]
    (engine,) = template["spec"]["containers"]
    assert (template["spec"]["nodeSelector"], template["spec"]["securityContext"]) == (
        {"gpu": "h100"},
        {"runAsUser": 7},
    )
    assert template["spec"]["volumes"][0]["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    assert template["metadata"]["annotations"]["autoscaling.knative.dev/target"] == "3"
    assert engine["args"][1:] == [
        "--served-model-name",
        "{{.MODEL_NAME}}",
        "other",
        "--chat-template=/etc/model-delivery/chat_template.jinja",
    ]
    assert engine["env"] == [{"name": "VLLM_API_KEY", "valueFrom": {"secretKeyRef": {"name": "k", "key": "a"}}}]
    assert made["ConfigMap"]["data"] == {"chat_template.jinja": "{{ x }}"}
    assert made["MLService"]["spec"]["scheduler"] == {"t9kScheduler": {"queue": "default"}}
    predictor = made["MLService"]["spec"]["releases"][0]["predictor"]
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (1, 4)


def test_releases_of_one_content_share_their_runtime_and_the_first_named_is_the_default() -> None:
    old, new = release("old", resources={"limits": {"cpu": 1}}), release("new", resources={"limits": {"cpu": 1}})
    want = Desired("m", (old, new), {"new": 10, "old": 90}, TARGET.address("m"))
    made = TARGET.compose(want)
    assert [one.ref.kind.name for one in made] == ["MLServiceRuntime", "MLService"]
    spec = made[-1].spec["spec"]
    assert (spec["default"], spec["canary"], spec["canaryTrafficPercent"]) == ("old", "new", 10)
    dark = composed(old, new, old=100)["MLService"]["spec"]
    assert "canary" not in dark
    assert [one["name"] for one in dark["releases"]] == ["old", "new"]


def test_nothing_serves_no_service() -> None:
    assert TARGET.compose(Desired("m", (), {}, None)) == ()


def test_a_first_release_is_default_at_once_and_a_recreate_is_one_write() -> None:
    can = Capabilities(dark_first=False, weights="percent")
    assert TARGET.can == can
    address = Address("m.ns", 80)
    first = stages("canary", Desired("m", (), {}, address), Release("a", NOTHING), (10,), can)
    assert [(str(stage.phase), stage.desired.shares) for stage in first] == [
        ("dark", {"a": 100}),
        ("promote", {"a": 100}),
    ]
    again = stages(
        "recreate", Desired("m", (Release("a", NOTHING),), {"a": 100}, address), Release("b", NOTHING), (), can
    )
    assert [(str(stage.phase), [one.id for one in stage.desired.releases]) for stage in again] == [
        ("dark", ["b"]),
        ("promote", ["b"]),
    ]


URL = "http://m-predict-r1.ns.ksvc.test"


def world(
    status: dict[str, Any] | None, pods: tuple[dict[str, Any], ...] = (), events: tuple[dict[str, Any], ...] = ()
) -> World:
    one = release("r1")
    made = composed(one, r1=100)["MLService"]
    made["metadata"] |= {"resourceVersion": "1", "generation": 1}
    objects = {Ref(ML_SERVICE, "m"): from_object(made | {"status": status}, ML_SERVICE)} if status is not None else {}
    return World("m", objects, 0.0, {"Pod": pods, "Event": events, "Node": ()})


def told(service_ready: str, reason: str = "", message: str = "", paused: str = "False", **mine: Any) -> dict[str, Any]:
    condition = {"type": "Ready", "status": service_ready} | ({"reason": reason, "message": message} if reason else {})
    row = {"name": "r1", "ready": False, "url": URL, "trafficPercent": 100, **mine}
    address = {"url": "http://m.ns.ksvc.test"}  # there long before anything is ready
    return {
        "conditions": [{"type": "Paused", "status": paused}, condition],
        "releases": [row],
        "defaultRelease": "r1",
        "address": address,
    }


def readiness(*args: Any) -> Readiness:
    return TARGET.readiness(release("r1"), world(*args))


def event(kind: str, name: str, reason: str, message: str) -> dict[str, Any]:
    return {"type": "Warning", "reason": reason, "message": message, "involvedObject": {"kind": kind, "name": name}}


def pod(state: dict[str, Any], **more: Any) -> dict[str, Any]:
    labels = {"model-delivery/object": "m-r1"}
    status = {"name": "user-container", "image": "i", "ready": False, "restartCount": 0, "state": state, **more}
    spec = {"containers": [{"name": "user-container"}]}
    return {
        "metadata": {"name": "m-predict-r1-00001-x", "labels": labels},
        "spec": spec,
        "status": {"phase": "Pending", "containerStatuses": [status]},
    }


@pytest.mark.parametrize(
    "url", ["http://evil/$(touch pwned)", "http://me:key@evil", "ftp://evil", 5, "http://evil:99999"]
)
def test_no_key_goes_to_an_address_that_is_none(url: Any) -> None:
    state = readiness(told("True", ready=True, url=url))
    assert isinstance(state, Failed)
    assert state.finding.code == "t9k.bad-address"
    status = told("True", ready=True) | {"address": {"url": url}}
    moved = TARGET.routed(Desired("m", (release("r1"),), {"r1": 100}, TARGET.address("m")), world(status))
    assert isinstance(moved, Failed)


def test_ready_is_the_condition_and_this_release_and_never_an_address() -> None:
    assert readiness(told("True", ready=True)) == Current(URL)
    assert readiness(told("true", ready=True)) == Current(URL), "the manuals write both"
    assert isinstance(readiness(told("True", ready=False)), InProgress), "the status may be of before this release"
    assert isinstance(readiness(told("True", ready=True, readyReplicas=0)), InProgress)
    held = readiness(told("False", "PredictorNotReady", ready=True))
    assert held == InProgress("the release is ready, the MLService is not yet: PredictorNotReady")
    assert isinstance(readiness(None), InProgress)
    assert isinstance(readiness({}), InProgress), "a service that the controller has not seen"


@pytest.mark.parametrize(
    "status", [told("False"), told("Unknown"), told("False", "PredictorNotReady", "revision is not ready")]
)
def test_the_normal_wait_is_no_failure(status: dict[str, Any]) -> None:
    assert isinstance(readiness(status), InProgress)


def test_another_reason_is_told_with_what_t9k_says_of_the_release() -> None:
    warning = event("MLService", "m", "Failed", "cannot reconcile")
    state = readiness(told("False", "RuntimeNotFound", message='runtime "m-1" not found'), (), (warning,))
    assert isinstance(state, Failed)
    assert state.finding.what == "T9k cannot start the release: RuntimeNotFound"
    assert state.finding.evidence == ("cannot reconcile",)
    assert isinstance(readiness(told("Unknown", "Deploying")), InProgress)


def test_a_paused_service_is_told() -> None:
    state = readiness(told("False", paused="True"))
    assert isinstance(state, Failed)
    assert "paused" in state.finding.what


def test_the_pods_know_best() -> None:
    waiting = {"waiting": {"reason": "ErrImagePull", "message": "not found"}}
    state = readiness(told("False", "PredictorNotReady"), (pod(waiting),))
    assert isinstance(state, Failed)
    assert "there is no image" in state.finding.what
    other = readiness(told("False", "RevisionFailed"), (pod({"waiting": {"reason": "ContainerCreating"}}),))
    assert isinstance(other, InProgress), "its pod is still on its way"


def test_an_admission_rule_speaks_through_an_event_of_what_t9k_made() -> None:
    no = event(
        "ReplicaSet", "m-predict-r1-00001-deployment-5f", "FailedCreate", 'pods "x" is forbidden: exceeded quota: few'
    )
    state = readiness(told("False", "PredictorNotReady"), (), (no,))
    assert isinstance(state, Failed)
    assert "quota is used up" in state.finding.what
    foreign = event(
        "ReplicaSet", "m-predict-r2-00001-deployment-5f", "FailedCreate", 'pods "x" is forbidden: exceeded quota: few'
    )
    assert isinstance(readiness(told("False", "PredictorNotReady"), (), (foreign,)), InProgress)


def test_traffic_has_moved_when_the_status_says_so() -> None:
    one, two = release("r1"), release("r2")
    want = Desired("m", (one, two), {"r1": 90, "r2": 10}, TARGET.address("m"))
    rows = [{"name": "r1", "trafficPercent": 90}, {"name": "r2", "trafficPercent": 10}]
    status: dict[str, Any] = {
        "defaultRelease": "r1",
        "canaryRelease": "r2",
        "releases": rows,
        "address": {"url": "http://m.ns.ksvc.test/"},
    }
    assert TARGET.routed(want, world(status)) == Current("http://m.ns.ksvc.test")
    lates: tuple[dict[str, Any], ...] = (
        {"defaultRelease": "r2"},
        {"canaryRelease": ""},
        {"canaryRelease": "theirs"},
        {"releases": [rows[0], rows[1] | {"trafficPercent": 0}]},
        {"address": {}},
    )
    for late in lates:
        assert isinstance(TARGET.routed(want, world(status | late)), InProgress), late


def test_the_queue_is_the_services_so_it_cannot_change_while_it_is_up() -> None:
    given = {"apiVersion": "model-delivery/v1", "name": "m", "model": {"source": "huggingface", "repo": "a/b"}}
    keys = {parse_spec(given | {"target": {"kind": "t9k", "queue": queue}}).target.key() for queue in (None, "a", "b")}
    assert len(keys) == 3
