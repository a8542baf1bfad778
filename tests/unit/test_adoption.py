"""``deliver adopt`` as values: what is read from objects that were made by hand, and what
is refused.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest

from model_delivery.base import Refused
from model_delivery.places.cluster.objects import from_object
from model_delivery.spec import DeliverySpec, parse_spec
from model_delivery.targets import Adoption
from model_delivery.values import Desired, Lock, Ref, Release, Snapshot
from tests.parts.kinds import BY_NAME
from tests.parts.t9k.template import filled

LOCK = Lock(
    snapshot=Snapshot(source="huggingface", key="a--b", commit="c" * 40, files=()),
    image="registry.example/vllm@sha256:" + "1" * 64,
)
MOUNTS = [
    {"name": "models", "mountPath": "/models", "subPath": "clones"},
    {"name": "cache", "mountPath": "/models/cache"},
]
VOLUMES = [{"name": "models", "persistentVolumeClaim": {"claimName": "vllm"}}, {"name": "cache", "emptyDir": {}}]
WORDS = ["--model", "/models/llama", "--served-model-name", "llama", "llama-chat", "--port=9000"]


def spec(kind: str, **serving: Any) -> DeliverySpec:
    return parse_spec(
        {
            "apiVersion": "model-delivery/v1",
            "name": "llama",
            "model": {"source": "huggingface", "repo": "a/b"},
            "storage": {"claim": "vllm"},
            "serving": {"model_names": ["llama"], **serving},
            "target": {"kind": kind, "namespace": "ns"},
            "runner": {"image": "registry.example/model-delivery:1"},
        }
    )


def made(
    kind: str, name: str, spec: dict[str, Any], status: dict[str, Any] | None = None, **meta: Any
) -> dict[str, Any]:
    about = {"name": name, "resourceVersion": "1", "uid": f"uid-of-{name}", **meta}
    return {"apiVersion": "v1", "kind": kind, "metadata": about, "spec": spec, "status": status or {}}


def deployment(container: dict[str, Any], **meta: Any) -> dict[str, Any]:
    pod = {
        "containers": [
            {"name": "proxy"},
            {"name": "vllm", "image": "vllm:v0.3.2", "volumeMounts": MOUNTS, **container},
        ],
        "volumes": VOLUMES,
    }
    labels = {"app": "llama"}
    return made(
        "Deployment", "by-hand", {"replicas": 2, "selector": {"matchLabels": labels}, "template": {"spec": pod}}, **meta
    )


def mlservice(**more: Any) -> list[dict[str, Any]]:
    container = {
        "name": "user-container",
        "image": "vllm:v0.3.2",
        "args": ["--model={{.MODEL_PATH}}", "--served-model-name={{ .MODEL_NAME }}"],
    }
    runtime = made("MLServiceRuntime", "vllm-openai", {"template": {"spec": {"containers": [container]}}})
    predictor = {
        "model": {"runtime": "vllm-openai", "parameters": {"MODEL_PATH": "/var/lib/t9k/model", "MODEL_NAME": "llama"}},
        "storage": {"pvc": {"name": "vllm", "subPath": "llama"}},
        **more,
    }
    return [
        runtime,
        made("MLService", "llama", {"default": "v1", "releases": [{"name": "v1", "predictor": predictor}]}),
    ]


def isvc(status: dict[str, Any] | None = None, **predictor: Any) -> list[dict[str, Any]]:
    args = ["--model_name={{.Name}}", "--model_dir=/mnt/models", "--http_port=8080"]
    runtime = made(
        "ServingRuntime", "hf", {"containers": [{"name": "kserve-container", "image": "hf:1", "args": args}]}
    )
    model = {"runtime": "hf", "storageUri": "pvc://vllm/llama", "modelFormat": {"name": "huggingface"}}
    return [runtime, made("InferenceService", "llama", {"predictor": {"model": model, **predictor}}, status)]


def adopting(wanted: DeliverySpec, named: str, *objects: dict[str, Any]) -> Adoption:
    there = {
        Ref(kind, one["metadata"]["name"]): from_object(one, kind) for one in objects for kind in [BY_NAME[one["kind"]]]
    }
    return wanted.target.key().target().adopt(wanted, LOCK, named, there.get)


@pytest.mark.parametrize(
    ("container", "names", "folder", "port"),
    [
        ({"args": WORDS}, ["llama", "llama-chat"], "clones/llama", 9000),
        ({"args": WORDS[:-1], "ports": [{"containerPort": 8080}]}, ["llama", "llama-chat"], "clones/llama", 8080),
        (
            {"command": ["vllm", "serve", "/models/llama"], "args": ["--served-model-name=llama"]},
            ["llama"],
            "clones/llama",
            8000,
        ),
        (
            {"command": ["bash", "-c", "vllm serve /models/llama \\\n --served-model-name 'llama' --port 81"]},
            ["llama"],
            "clones/llama",
            81,
        ),
        (
            {"command": ["python", "-m", "vllm.entrypoints.openai.api_server", "--model=/models/llama"]},
            ["/models/llama"],
            "clones/llama",
            8000,
        ),
    ],
)
def test_a_deployment_says_by_its_words_what_it_serves(
    container: dict[str, Any], names: list[str], folder: str, port: int
) -> None:
    by_hand = deployment(container)
    if names[0].startswith("/"):
        with pytest.raises(Refused, match=r"set serving.model_names to \[/models/llama\]"):
            adopting(spec("deployment"), "by-hand", by_hand)
        return
    found = adopting(spec("deployment", model_names=names), "by-hand", by_hand)
    payload = found.payload.content()
    known = payload["adopted"]
    assert (known["folder"], known["port"], found.replicas) == (folder, port, 2)
    assert known["pods"] == {"labels": {"app": "llama"}}
    assert payload["live"] == by_hand["spec"]
    assert (payload["claim"], payload["image"]) == ("vllm", "vllm:v0.3.2")


def test_what_differs_is_told() -> None:
    env = [{"name": "HF_HUB_OFFLINE", "value": "0"}, {"name": "MINE", "value": "1"}]
    told = adopting(
        spec("deployment", model_names=["llama", "llama-chat"]), "by-hand", deployment({"args": WORDS, "env": env})
    ).differs
    text = "\n".join(told)
    assert "arguments: --model /models/llama --port 9000 → " in text
    assert f"weights: vllm/clones/llama → vllm/models/huggingface/a--b/{'c' * 40}" in text
    assert 'env.HF_HUB_OFFLINE.value: "0" → "1"' in text
    assert "env.MINE" in text
    assert f'engine.image: "vllm:v0.3.2" → "{LOCK.image}"' in text
    assert "template.spec.automountServiceAccountToken: null → false" in text


def test_a_t9k_service_keeps_its_entry_and_its_runtime() -> None:
    objects = mlservice(minReplicas=1)
    found = adopting(spec("t9k"), "llama", *copy.deepcopy(objects))
    target = spec("t9k").target.key().target()
    old, new = (
        Release("old", found.payload),
        Release("new", target.payload(spec("t9k"), LOCK)),
    )
    want = Desired("llama", (old, new), {"old": 90, "new": 10}, target.address("llama"))
    *beside, service = target.compose(want)
    assert {one.ref.name for one in beside if one.ref.kind.name == "MLServiceRuntime"} == {
        new.payload.content()["predictor"]["model"]["runtime"]
    }
    assert (service.spec["spec"]["default"], service.spec["spec"]["canary"]) == ("v1", "new")
    assert service.spec["spec"]["releases"][0] == objects[1]["spec"]["releases"][0]
    assert found.payload.content()["adopted"]["pods"] == {"prefix": "llama-predict-v1-"}
    assert filled(["{{.MODEL_NAME}}"], {"MODEL_NAME": "llama"}) == ["llama"], "as T9k itself fills it"


def test_a_kserve_service_is_found_by_the_pods_that_kserve_makes() -> None:
    known = adopting(spec("kserve"), "llama", *isvc()).payload.content()["adopted"]
    assert (known["folder"], known["port"], known["service"]) == ("llama", 8080, "llama-predictor")
    assert known["pods"] == {"labels": {"app": "isvc.llama-predictor"}}


OWNED: dict[str, Any] = {"ownerReferences": [{"kind": "InferenceService", "name": "above", "controller": True}]}
REFUSED: dict[str, tuple[str, str, list[dict[str, Any]], str]] = {
    "absent": ("deployment", "nobody", [], "no Deployment/nobody to adopt"),
    "owned": ("deployment", "by-hand", [deployment({"args": WORDS}, **OWNED)], "adopt InferenceService above"),
    "another delivery": (
        "deployment", "by-hand", [deployment({"args": WORDS}, labels={"model-delivery/delivery": "other"})], "belongs to the delivery other",
    ),
    "from a hub": ("deployment", "by-hand", [deployment({"args": ["--model", "org/llama"]})], "not on a claim.*loads org/llama"),
    "in an emptyDir": ("deployment", "by-hand", [deployment({"args": ["--model=/models/cache/x"]})], "not on a claim"),
    "token": (
        "deployment", "by-hand", [deployment({"args": WORDS, "env": [{"name": "HF_TOKEN", "value": "hf_1"}]})], "HF_TOKEN holds a secret",
    ),
    "key in the arguments": ("deployment", "by-hand", [deployment({"args": [*WORDS, "--api-key", "s3cret"]})], "--api-key holds a secret"),
    "key in one word": ("deployment", "by-hand", [deployment({"args": [*WORDS, "--api-key=s3cret"]})], "--api-key holds a secret"),
    "a key that the spec lacks": (
        "deployment", "by-hand",
        [deployment({"args": WORDS, "env": [{"name": "VLLM_API_KEY", "valueFrom": {"secretKeyRef": {"name": "api", "key": "k"}}}]})],
        r"set serving.api_key to \{kube: \{name: api, key: k\}\}",
    ),
    "the address is taken": (
        "deployment", "by-hand", [deployment({"args": WORDS}), made("Service", "llama", {}, **OWNED)], "Service/llama is there already",
    ),
    "two releases": (
        "t9k", "llama", [mlservice()[0], made("MLService", "llama", {"default": "v1", "releases": [{"name": "v1"}, {"name": "v2"}]})], "has 2 releases",
    ),
    "another name": ("t9k", "other", mlservice(), "set the spec's name to other"),
    "no runtime": ("t9k", "llama", mlservice()[1:], "MLServiceRuntime vllm-openai is gone"),
    "s3": ("t9k", "llama", mlservice(storage={"s3": {"uri": "s3://a"}}), "not on a claim"),
    "knative": ("kserve", "llama", isvc({"deploymentMode": "Knative"}), "mode Knative"),
    "storage elsewhere": ("kserve", "llama", isvc(model={"runtime": "hf", "storageUri": "hf://org/llama"}), "not on a claim.*hf://org/llama"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_come_under_a_spec_is_refused_by_name(case: str) -> None:
    kind, named, objects, told = REFUSED[case]
    with pytest.raises(Refused, match=f"(?s){told}") as refused:
        adopting(
            spec(kind, model_names=["llama", "llama-chat"] if kind == "deployment" else ["llama"]), named, *objects
        )
    assert "s3cret" not in refused.value.text
    assert "hf_1" not in refused.value.text
