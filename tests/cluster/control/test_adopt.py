"""What was made by hand comes under a spec without a restart: on each target, in a real
control plane with played pods.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import yaml

from model_delivery.flows.deliver import deliver
from model_delivery.spec import DeliverySpec
from model_delivery.targets.kubernetes.kinds import SERVICE
from model_delivery.values import Ref
from tests.cluster.control.killed import run
from tests.cluster.control.lab import ENGINE, NAME, RUNNER, Lab
from tests.parts.cluster.provisioner import folder_of
from tests.parts.cluster.waiting import until
from tests.parts.tiny_model import tiny_model

CLAIM, CLONE = "hand", "clones/tiny"
OBJECTS = {"deployment": ("deployment", "by-hand"), "t9k": ("mls", NAME), "kserve": ("isvc", "by-hand")}


def by_hand(lab: Lab, weights: bytes | None = None) -> None:
    """A claim with a clone, and an engine that serves it, as a person makes them with
    kubectl; until its pod is ready.
    """
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}},
        "storageClassName": "late",
    }
    mount = {"name": "models", "persistentVolumeClaim": {"claimName": CLAIM}}
    notebook = {
        "containers": [
            {
                "name": "notebook",
                "image": RUNNER,
                "command": ["true"],
                "volumeMounts": [{"name": "models", "mountPath": "/data"}],
            }
        ],
        "volumes": [mount],
        "restartPolicy": "Never",
    }
    apply(
        lab,
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": CLAIM}, "spec": claim},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "notebook"}, "spec": notebook},
    )
    lab.cluster.kubectl(
        "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/notebook", "-n", lab.namespace, "--timeout=60s"
    )
    folder = clone(lab)
    tiny_model(folder)
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (folder / "README.md").write_text("a clone holds more than a model needs\n")
    if weights is not None:
        (folder / "model.safetensors").write_bytes(weights)
    apply(lab, *{"deployment": plain, "t9k": t9k, "kserve": kserve}[lab.kind](mount))
    until(lambda: engine(lab) is not None, 60, "the engine made by hand does not start")
    lab.cluster.kubectl("wait", "--for=condition=Ready", f"pod/{engine(lab)[0]}", "-n", lab.namespace, "--timeout=60s")  # type: ignore[index]


def plain(mount: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    labels = {"app": "codellama"}
    words = f"exec timing --model /models/{CLONE} --served-model-name {NAME} --port 8080 --label hand --ttft 2 --itl 1"
    container = {
        "name": "vllm",
        "image": ENGINE,
        "args": words.split()[2:],
        "ports": [{"containerPort": 8080}],
        "readinessProbe": {"httpGet": {"path": "/health", "port": 8080}, "periodSeconds": 1},
        "volumeMounts": [{"name": "models", "mountPath": "/models"}],
    }
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container], "volumes": [mount]}}
    spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
    service = {"selector": labels, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}
    return (
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "by-hand", "labels": {"team": "a"}},
            "spec": spec,
        },
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": NAME}, "spec": service},
    )


def t9k(_: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """As the example's: https://github.com/t9k/examples has it; the runtime serves others
    too.
    """
    args = ["--model={{.MODEL_PATH}}", "--served-model-name={{.MODEL_NAME}}", "--label=hand", "--ttft=2", "--itl=1"]
    container = {"name": "user-container", "image": ENGINE, "args": args, "ports": [{"containerPort": 8000}]}
    predictor = {
        "minReplicas": 1,
        "model": {"runtime": "vllm-openai", "parameters": {"MODEL_PATH": "/var/lib/t9k/model", "MODEL_NAME": NAME}},
        "storage": {"pvc": {"name": CLAIM, "subPath": CLONE}},
        "containersResources": [{"name": "user-container", "resources": {"limits": {"cpu": "1"}}}],
    }
    api = "tensorstack.dev/v1beta1"
    runtime = {"enabled": True, "template": {"spec": {"containers": [container]}}}
    return (
        {"apiVersion": api, "kind": "MLServiceRuntime", "metadata": {"name": "vllm-openai"}, "spec": runtime},
        {"apiVersion": api, "kind": "MLService", "metadata": {"name": NAME}, "spec": {"default": "v1", "releases": [{"name": "v1", "predictor": predictor}]}},
    )  # fmt: skip


def kserve(_: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    args = ["--model=/mnt/models", f"--served-model-name={NAME}", "--port=8080", "--label=hand", "--ttft=2", "--itl=1"]
    container = {
        "name": "kserve-container",
        "image": ENGINE,
        "args": args,
        "ports": [{"containerPort": 8080, "protocol": "TCP"}],
    }
    runtime = {"supportedModelFormats": [{"name": "vLLM"}], "containers": [container]}
    model = {"modelFormat": {"name": "vLLM"}, "runtime": "vllm-openai", "storageUri": f"pvc://{CLAIM}/{CLONE}"}
    model |= {"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}}}
    meta = {
        "name": "by-hand",
        "annotations": {"serving.kserve.io/deploymentMode": "RawDeployment"},
        "labels": {"team": "a"},
    }
    return (
        {
            "apiVersion": "serving.kserve.io/v1alpha1",
            "kind": "ServingRuntime",
            "metadata": {"name": "vllm-openai"},
            "spec": runtime,
        },
        {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": meta,
            "spec": {"predictor": {"model": model}},
        },
    )


def apply(lab: Lab, *objects: dict[str, Any]) -> None:
    """``kubectl apply`` as people type it: client-side."""
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
    lab.cluster.kubectl("apply", "-n", lab.namespace, "-f", "-", input=text)


def clone(lab: Lab) -> Path:
    volume = live(lab, "pvc", CLAIM)["spec"]["volumeName"]
    return folder_of(json.loads(lab.cluster.kubectl("get", "pv", volume, "-o", "json"))) / CLONE


def live(lab: Lab, kind: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        lab.cluster.kubectl("get", kind, name, "-n", lab.namespace, "-o", "json", "--show-managed-fields")
    )
    return found


def untouched(found: dict[str, Any]) -> Any:
    """What people write of an object, and who holds it: the rest its controller may
    change at any time.
    """
    meta = found["metadata"]
    held = [(one["manager"], one["fieldsV1"]) for one in meta["managedFields"] if not one.get("subresource")]
    return meta["generation"], meta.get("labels"), meta.get("annotations"), held


def engine(lab: Lab) -> tuple[str, int] | None:
    """Pod and process of the engine that was made by hand; None: it does not run."""
    for player in list(lab.node.players.values()):
        child = player.children.get(
            {"deployment": "vllm", "t9k": "user-container", "kserve": "kserve-container"}[lab.kind]
        )
        if player.is_alive() and player.pod["metadata"]["namespace"] == lab.namespace and child is not None:
            try:
                words = psutil.Process(child.pid).cmdline()
            except psutil.NoSuchProcess:
                continue
            if "hand" in words or "--label=hand" in words:
                return player.pod["metadata"]["name"], child.pid
    return None


def spec(lab: Lab, *args: str, **more: Any) -> DeliverySpec:
    gates = {"smoke": {"max_tokens": 16, "expect": "Paris", **more.pop("smoke", {})}, "throughput": None}
    return lab.spec(*args, gates=gates, storage={"claim": CLAIM}, **more)


def said(folder: Path, wanted: DeliverySpec | str, verb: str, *args: str, code: int = 0) -> str:
    """What ``deliver VERB`` printed, of a spec or of a name."""
    named = wanted
    if not isinstance(wanted, str):
        named = str(folder / "spec.yaml")
        Path(named).write_text(yaml.safe_dump(wanted.model_dump(mode="json")))
    words = [str(Path(sys.executable).with_name("deliver")), verb, str(named), *args]
    done = subprocess.run(words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def source(lab: Lab) -> list[str]:
    return ["--from", OBJECTS[lab.kind][1]]


def adopted(lab: Lab, before: tuple[str, int] | None) -> None:
    """It serves under our name with all of the traffic, is the same process, and differs
    in nothing from what is wanted.
    """
    assert before is not None
    assert engine(lab) == before
    record = lab.record
    assert (record.candidate, record.ended[-1].outcome) == (None, "adopted")
    assert dict(record.desired.traffic) == {record.serving: 100}


def test_it_comes_under_a_spec_without_a_restart_and_is_replaced_and_comes_back(lab: Lab, tmp_path: Path) -> None:
    by_hand(lab)
    before, wanted = engine(lab), spec(lab)
    old = live(lab, *OBJECTS[lab.kind])

    shown = said(tmp_path, wanted, "adopt", *source(lab), code=2)
    assert "nobody can be asked here" in shown
    assert "the fields that kubectl-client-side-apply holds become ours" in shown
    assert "--label hand" in next(line for line in shown.splitlines() if "arguments: " in line).replace("=", " ")
    assert f"weights: {CLAIM}/{CLONE} → {CLAIM}/models/huggingface/" in shown
    assert untouched(live(lab, *OBJECTS[lab.kind])) == untouched(old)
    assert not lab.place.deliveries()

    told = said(tmp_path, wanted, "adopt", *source(lab), "--yes")
    assert "nothing restarts" in told
    assert "its 3 files" in told
    assert "beside the model's: README.md" in told
    adopted(lab, before)
    now = live(lab, *OBJECTS[lab.kind])
    assert now["spec"] == old["spec"]
    assert now["metadata"]["labels"].items() >= old["metadata"].get("labels", {}).items()
    assert ("model-delivery/delivery" in now["metadata"]["labels"]) == (lab.kind != "kserve"), (
        "KServe hands labels down to its pods"
    )
    held = {one["manager"] for one in now["metadata"]["managedFields"] if not one.get("subresource")}
    assert held - {"kserve"} == {f"model-delivery/{NAME}" if lab.kind == "kserve" else "model-delivery"}
    assert (clone(lab) / ".model-delivery.json").exists()
    where = ("-n", lab.namespace)
    status = said(tmp_path, NAME, "status", *where)
    assert f"{NAME}: up at http://" in status
    assert "unverified" not in status
    assert "differs" not in status
    assert said(tmp_path, NAME, "logs", *where)
    assert "adopted" in said(tmp_path, NAME, "history", *where)
    assert f"{NAME}: unchanged" in said(tmp_path, wanted, "up")
    assert "3 files" in said(tmp_path, wanted, "adopt", *source(lab), "--yes"), "once more is no harm"
    adopted(lab, before)

    first = lab.record.serving
    second = deliver.fn(spec(lab))
    assert second["result"] == "promoted"
    until(lambda: engine(lab) is None, 60, "the adopted engine does not end")
    assert lab.running(lab.place.world(NAME)) == [second["release"]]
    lab.cluster.kubectl(
        "get",
        {"t9k": "mlserviceruntime/vllm-openai", "kserve": "servingruntime/vllm-openai"}.get(lab.kind, "ns"),
        *where,
    )

    said(tmp_path, NAME, "rollback", "--to", str(first), *where)
    assert lab.record.serving == first
    assert engine(lab) is not None
    assert live(lab, *OBJECTS[lab.kind])["spec"] == old["spec"]
    said(tmp_path, NAME, "down", *where)
    until(lambda: engine(lab) is None, 60, "the adopted engine does not end")
    assert live(lab, "pvc", CLAIM), "a user's claim is never deleted"


def test_weights_that_are_not_the_sources_serve_on_unverified(lab: Lab, tmp_path: Path) -> None:
    whole = (tiny_model(tmp_path / "whole") / "model.safetensors").read_bytes()
    by_hand(lab, whole[:-1] + b"\1")
    before, wanted = engine(lab), spec(lab)
    (clone(lab) / "old.safetensors").write_bytes(b"")
    told = said(tmp_path, wanted, "adopt", *source(lab), "--yes", code=1)
    assert "model.safetensors is another file" in told
    assert "old.safetensors is not the model's" in told
    adopted(lab, before)
    assert "up, unverified" in said(tmp_path, NAME, "status", "-n", lab.namespace)
    assert not (clone(lab) / ".model-delivery.json").exists()
    assert f"{NAME}: unchanged" in said(tmp_path, wanted, "up")
    (clone(lab) / "model.safetensors").write_bytes(whole)
    (clone(lab) / "old.safetensors").unlink()
    corrected = wanted.model_copy(update={"model": wanted.model.model_copy(update={"exclude": ("tokenizer*",)})})
    assert "its 2 files" in said(tmp_path, corrected, "adopt", *source(lab), "--yes")
    assert f"{NAME}: unchanged" in said(tmp_path, corrected, "up")
    adopted(lab, before)
    assert "unverified" not in said(tmp_path, NAME, "status", "-n", lab.namespace)


def test_a_killed_adoption_is_finished_by_the_next_run(lab: Lab, tmp_path: Path) -> None:
    by_hand(lab)
    before, wanted = engine(lab), spec(lab)
    given = {"spec": wanted.model_dump(mode="json"), "named": OBJECTS[lab.kind][1]}
    old = live(lab, *OBJECTS[lab.kind])
    count = 0
    while True:
        killed = run("adopt", given, count)
        if killed.code is not None:
            break
        assert engine(lab) == before, killed.events
        count += 1
    assert count >= 4, killed.events
    adopted(lab, before)
    assert live(lab, *OBJECTS[lab.kind])["spec"] == old["spec"]
    assert "3 files" in said(tmp_path, wanted, "adopt", *source(lab), "--yes")
    assert f"{NAME}: unchanged" in said(tmp_path, wanted, "up")
    adopted(lab, before)


def test_what_would_be_a_lie_is_refused_and_nothing_is_touched(lab: Lab, tmp_path: Path) -> None:
    by_hand(lab)
    kind, name = OBJECTS[lab.kind]
    before = untouched(live(lab, kind, name))
    wrong = lab.spec(storage={"claim": "another"}, serving={"model_names": ["gpt"]})
    told = said(tmp_path, wrong, "adopt", *source(lab), "--yes", code=3)
    assert f"set storage.claim to {CLAIM}" in told
    assert f"set serving.model_names to [{NAME}]" in told
    told = said(tmp_path, spec(lab), "adopt", "--from", "nobody", "--yes", code=3)
    assert (
        "there is no" in told and "nobody to adopt" in told
    ) or f"a delivery called {NAME} cannot adopt MLService nobody" in told
    assert untouched(live(lab, kind, name)) == before
    assert not lab.place.deliveries()
    assert Ref(SERVICE, NAME) not in lab.place.world(NAME).objects
