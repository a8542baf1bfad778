"""T9k (its controller is a stand-in) and KServe (its real manager) on a real node, with
real vLLM: dark, promoted, rolled back, refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.cluster.node.lab import NAME, Lab, controller, running_lab
from tests.cluster.node.test_story import answers, pods, spec
from tests.parts.cluster import images
from tests.parts.cluster.node import Node
from tests.parts.cluster.waiting import until

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module", params=["t9k", "kserve"])
def lab(request: pytest.FixtureRequest, node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    pushed = {"runner": images.push_project(node.registry), "engine": images.push_engine(node.registry)}
    folder = tmp_path_factory.mktemp(request.param)
    with controller(node, request.param), running_lab(node, folder, images.model(), pushed, request.param) as made:
        yield made


def length_at(url: str) -> int | None:
    """The longest context of the engine that answers there; None while nobody does."""
    try:
        answer = httpx.get(f"{url}/v1/models", trust_env=False, timeout=5)
    except httpx.TransportError:
        return None
    return int(answer.json()["data"][0]["max_model_len"]) if answer.is_success else None


def dark_url(lab: Lab) -> str | None:
    """Where the release that has no traffic is, once its own object says so."""
    if lab.kind == "t9k":
        (found,) = lab.there("mlservices")
        dark = [
            one
            for one in found.get("status", {}).get("releases", ())
            if one["name"] != found["spec"]["default"] and one.get("ready")
        ]
        return dark[0]["url"] if dark else None
    serving = f"{NAME}-{lab.record.serving}"
    names = [one["metadata"]["name"] for one in lab.there("inferenceservices") if one["metadata"]["name"] != serving]
    return f"http://{names[0]}-predictor.{lab.namespace}.svc" if names else None


def test_a_model_is_delivered_and_a_rerun_changes_nothing(lab: Lab) -> None:
    assert f"{NAME}: promoted" in lab.deliver("up", spec(lab))
    assert answers(lab)
    before = pods(lab)
    assert f"{NAME}: unchanged" in lab.deliver("up", spec(lab))
    assert pods(lab) == before


def test_a_second_release_is_dark_at_its_own_address_until_it_is_promoted(lab: Lab) -> None:
    first = lab.record.serving
    canary: dict[str, Any] = {"strategy": "canary", "steps": [50], "soak": "0s"} if lab.kind == "t9k" else {}
    with lab.begin("up", spec(lab, 768, **canary)) as run:
        until(lambda: (url := dark_url(lab)) and length_at(url) == 768, 300, "no dark release answers")
        assert length_at(lab.url) == 1024
        said, _ = run.communicate()
    assert run.returncode == 0, said
    assert f"{NAME}: promoted" in said
    assert length_at(lab.url) == 768
    assert lab.record.previous == first


def test_a_release_that_answers_wrong_is_withdrawn(lab: Lab) -> None:
    serving, before = lab.record.serving, pods(lab)
    said = lab.deliver("up", spec(lab, 640, expect="Atlantis"), code=4)
    assert "Atlantis" in said
    assert (lab.record.serving, lab.record.candidate) == (serving, None)
    until(lambda: pods(lab) == before, 60, "the refused release's pod stays")
    assert answers(lab)


def test_what_somebody_else_changed_is_healed_with_take_over_and_no_pod_is_touched(lab: Lab) -> None:
    before, wanted = pods(lab), spec(lab, 768)
    kind, where = ("mls", "releases/0/predictor") if lab.kind == "t9k" else ("isvc", "predictor")
    (name,) = [one["metadata"]["name"] for one in lab.there(kind)]
    change = json.dumps([{"op": "replace", "path": f"/spec/{where}/maxReplicas", "value": 3}])
    lab.node.kubectl("patch", kind, name, "-n", lab.namespace, "--type=json", "-p", change, "--field-manager=somebody")
    assert "somebody" in lab.deliver("status", NAME, "--namespace", lab.namespace)
    assert "--take-over" in lab.deliver("up", wanted, code=1)
    assert f"{NAME}: healed" in lab.deliver("up", wanted, "--take-over")
    assert f"{NAME}: unchanged" in lab.deliver("up", wanted)
    assert pods(lab) == before


def test_it_is_rolled_back_and_taken_down(lab: Lab) -> None:
    lab.deliver("rollback", NAME, "--namespace", lab.namespace)
    assert length_at(lab.url) == 1024
    lab.deliver("down", NAME, "--namespace", lab.namespace)
    until(lambda: not lab.there("pods", "model-delivery/release"), 90, "its pods stay")
    kind = {"t9k": "mlservices", "kserve": "inferenceservices"}[lab.kind]
    assert not json.loads(lab.node.kubectl("get", kind, "-n", lab.namespace, "-o", "json"))["items"]


def by_hand(lab: Lab) -> str:
    """A clone on the claim, and an engine that serves it, as people make them with
    kubectl; the name of its object.
    """
    (volume,) = lab.there("pvc")
    claim, folder = volume["metadata"]["name"], "clones/smollm2"
    copy = "import pathlib, shutil; (old,) = pathlib.Path('/data/models/huggingface').glob('*/*/config.json'); "
    copy += f"shutil.copytree(old.parent, '/data/{folder}', ignore=shutil.ignore_patterns('.model-delivery*'))"
    restricted = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    user = {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
    notebook: dict[str, Any] = {
        "name": "notebook",
        "image": lab.images["runner"],
        "command": ["python", "-c", copy],
        "securityContext": restricted,
    }
    notebook |= {"volumeMounts": [{"name": "models", "mountPath": "/data"}]}
    pod: dict[str, Any] = {
        "containers": [notebook],
        "restartPolicy": "Never",
        "securityContext": user,
        "imagePullSecrets": [{"name": "pull"}],
    }
    pod |= {"volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": claim}}]}
    apply(lab, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "notebook"}, "spec": pod})
    lab.node.kubectl(
        "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/notebook", "-n", lab.namespace, "--timeout=120s"
    )
    path = "{{.MODEL_PATH}}" if lab.kind == "t9k" else "/mnt/models"
    args = [
        f"--model={path}",
        f"--served-model-name={NAME}",
        "--max-model-len=512",
        "--dtype=bfloat16",
        "--enforce-eager",
        "--port=8000",
    ]
    engine: dict[str, Any] = {
        "name": "user-container" if lab.kind == "t9k" else "kserve-container",
        "image": lab.images["engine"],
        "args": args,
    }
    engine |= {"ports": [{"containerPort": 8000, "protocol": "TCP"}], "securityContext": restricted}
    engine |= {"env": [{"name": "HOME", "value": "/tmp"}, {"name": "USER", "value": "by-hand"}]}  # noqa: S108 - in its container
    engine |= {"volumeMounts": [{"name": "dshm", "mountPath": "/dev/shm"}]}  # noqa: S108
    volumes = [{"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": "512Mi"}}]
    engine |= {"readinessProbe": {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 2}}
    if lab.kind == "t9k":
        api = "tensorstack.dev/v1beta1"
        template = {"spec": {"containers": [engine], "volumes": volumes, "imagePullSecrets": [{"name": "pull"}]}}
        model = {"runtime": "vllm-openai", "parameters": {"MODEL_PATH": "/var/lib/t9k/model"}}
        predictor: dict[str, Any] = {
            "minReplicas": 1,
            "model": model,
            "storage": {"pvc": {"name": claim, "subPath": folder}},
        }
        release = {"default": "v1", "releases": [{"name": "v1", "predictor": predictor}]}
        runtime: dict[str, Any] = {
            "apiVersion": api,
            "kind": "MLServiceRuntime",
            "spec": {"enabled": True, "template": template},
        }
        service: dict[str, Any] = {"apiVersion": api, "kind": "MLService", "metadata": {"name": NAME}, "spec": release}
    else:
        offers = {"supportedModelFormats": [{"name": "vLLM"}], "containers": [engine], "volumes": volumes}
        runtime = {"apiVersion": "serving.kserve.io/v1alpha1", "kind": "ServingRuntime", "spec": offers}
        model = {"modelFormat": {"name": "vLLM"}, "runtime": "vllm-openai", "storageUri": f"pvc://{claim}/{folder}"}
        model |= {"resources": {"limits": {"memory": "6Gi"}, "requests": {"memory": "6Gi"}}}
        predictor = {
            "model": model,
            "securityContext": user,
            "imagePullSecrets": [{"name": "pull"}],
            "enableServiceLinks": False,
        }
        meta = {"name": "by-hand", "annotations": {"serving.kserve.io/deploymentMode": "RawDeployment"}}
        service = {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": meta,
            "spec": {"predictor": predictor},
        }
    apply(lab, {**runtime, "metadata": {"name": "vllm-openai"}}, service)
    return str(service["metadata"]["name"])


def apply(lab: Lab, *objects: dict[str, Any]) -> None:
    """``kubectl apply`` as people type it: client-side."""
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
    lab.node.kubectl("apply", "-n", lab.namespace, "-f", "-", input=text)


def test_an_engine_made_by_hand_comes_under_the_spec_without_a_restart(lab: Lab) -> None:
    named = by_hand(lab)
    label = {"t9k": "mlservice.tensorstack.dev/service", "kserve": "serving.kserve.io/inferenceservice"}[lab.kind]
    lab.node.kubectl("wait", "--for=create", "pod", "-l", label, "-n", lab.namespace, "--timeout=60s")
    lab.node.kubectl("wait", "--for=condition=Ready", "pod", "-l", label, "-n", lab.namespace, "--timeout=300s")
    before = [
        (one["metadata"]["uid"], one["status"]["containerStatuses"][0]["restartCount"])
        for one in lab.there("pods", label)
    ]
    said = lab.deliver("adopt", spec(lab), "--from", named, "--yes")
    assert f"{NAME}: adopted" in said
    assert length_at(lab.url) == 512
    assert answers(lab)
    assert f"{NAME}: unchanged" in lab.deliver("up", spec(lab))
    status = lab.deliver("status", NAME, "--namespace", lab.namespace)
    assert ": up at" in status
    assert "unverified" not in status
    assert [
        (one["metadata"]["uid"], one["status"]["containerStatuses"][0]["restartCount"])
        for one in lab.there("pods", label)
    ] == before
    lab.deliver("down", NAME, "--namespace", lab.namespace)
    until(lambda: not lab.there("pods", label), 90, "its pod stays")
