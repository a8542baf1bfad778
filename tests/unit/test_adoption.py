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
from model_delivery.targets.kubernetes.release import AdoptedPayload
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
        "Deployment", "by-hand", {"replicas": 1, "selector": {"matchLabels": labels}, "template": {"spec": pod}}, **meta
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


HF_ARGS = ["--model_name={{.Name}}", "--model_dir=/mnt/models", "--http_port=8080"]


def isvc(
    status: dict[str, Any] | None = None,
    args: list[str] = HF_ARGS,
    beside: dict[str, Any] | None = None,
    **predictor: Any,
) -> list[dict[str, Any]]:
    runtime = made(
        "ServingRuntime", "hf", {"containers": [{"name": "kserve-container", "image": "hf:1", "args": args}]}
    )
    model = {"runtime": "hf", "storageUri": "pvc://vllm/llama", "modelFormat": {"name": "huggingface"}}
    spec = {"predictor": {"model": model, **predictor}, **(beside or {})}
    return [runtime, made("InferenceService", "llama", spec, status)]


def of_model(**more: Any) -> dict[str, Any]:
    return {
        "model": {"runtime": "hf", "storageUri": "pvc://vllm/llama", "modelFormat": {"name": "huggingface"}, **more}
    }


def resolved(*args: str, **more: Any) -> dict[str, Any]:
    """What KServe made of an InferenceService."""
    container = {"name": "kserve-container", "image": "hf:2", "args": list(args), **more}
    pod = {"template": {"spec": {"containers": [container]}}, "selector": {"matchLabels": {}}}
    owner = {"kind": "InferenceService", "name": "llama", "controller": True}
    return made("Deployment", "llama-predictor", pod, ownerReferences=[owner])


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
        with pytest.raises(Refused, match=r"(?s)clients call it /models/llama.*--served-model-name"):
            adopting(spec("deployment"), "by-hand", by_hand)
        return
    found = adopting(spec("deployment", model_names=names), "by-hand", by_hand)
    payload = found.payload.content()
    known = payload["adopted"]
    assert (known["folder"], known["port"], found.replicas) == (folder, port, 1)
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
    assert 'env.HF_HUB_OFFLINE: "0" → "1"' in text
    assert 'env.MINE: "1" → none' in text
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


def paused() -> list[dict[str, Any]]:
    runtime, service = mlservice()
    return [runtime, service | {"status": {"conditions": [{"type": "Paused", "status": "True"}]}}]


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
    "two replicas": ("kserve", "llama", isvc(minReplicas=2), r"set serving.replicas to \{min: 2, max: 2\}"),
    "no replicas": ("kserve", "llama", isvc(minReplicas=0), "it is stopped"),
    "paused": ("t9k", "llama", paused(), "it is stopped"),
    "transformer": ("kserve", "llama", isvc(beside={"transformer": {"containers": [{}]}}), "a transformer stands in front"),
    "several nodes": ("kserve", "llama", isvc(workerSpec={"pipelineParallelSize": 2}), "several nodes"),
    "an old form": ("kserve", "llama", isvc(model=None, huggingface={"storageUri": "pvc://a"}), "neither a model nor containers, but huggingface"),
    "another port than its Service": ("kserve", "llama", isvc(args=[*HF_ARGS[:2], "--port=9000"]), "listens on 9000, and KServe leads what comes for it to 8080"),
    "a model beside the claim": ("kserve", "llama", isvc(args=["--model=org/llama"]), "not on a claim.*loads org/llama"),
    "out of the claim": ("kserve", "llama", isvc(**of_model(storageUri="pvc://vllm/../other")), "not on a claim"),
    "a mounted path as a name": (
        "kserve", "llama", isvc(args=["--model=/mnt/models", "--port=8080"]), "clients call it /mnt/models.*--served-model-name",
    ),
    "a password in an address": ("kserve", "llama", isvc(**of_model(storageUri="https://me:s3cret@host/x")), r"loads https://\*\*\*@host"),
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


def test_a_device_may_be_counted_in_any_form_that_the_api_writes() -> None:
    made = deployment({"args": WORDS, "resources": {"limits": {"example.com/device": "1k", "nvidia.com/gpu": "2"}}})
    payload = adopting(spec("deployment", model_names=["llama", "llama-chat"]), "by-hand", made).payload
    assert isinstance(payload, AdoptedPayload)
    assert payload.devices == {"example.com/device": 1000, "nvidia.com/gpu": 2}


@pytest.mark.parametrize("replicas", [0, 2])
def test_a_deployment_of_another_size_is_refused_with_what_to_do(replicas: int) -> None:
    by_hand = deployment({"args": WORDS})
    by_hand["spec"]["replicas"] = replicas
    with pytest.raises(Refused, match="is stopped" if replicas == 0 else r"min: 2, max: 2"):
        adopting(spec("deployment", model_names=["llama", "llama-chat"]), "by-hand", by_hand)


def test_a_service_that_its_owner_stopped_is_told_so() -> None:
    runtime, service = isvc()
    service["metadata"]["annotations"] = {"serving.kserve.io/stop": "true"}
    with pytest.raises(Refused, match=r"(?s)it is stopped.*serving.kserve.io/stop"):
        adopting(spec("kserve"), "llama", runtime, service)


SERVE = "exec vllm serve /models/llama --served-model-name llama llama-chat"


@pytest.mark.parametrize(
    "text",
    [
        f"# don't touch\n{SERVE}",
        f"set -e; export X=1 && {SERVE} | tee /tmp/log",
        f"echo it's up\n{SERVE}",
        f"cd /models\n{SERVE} \\\n --port 8000",
        "exec vllm serve $MODEL --served-model-name llama llama-chat",
    ],
)
def test_the_text_of_a_shell_is_read_as_it_runs(text: str) -> None:
    container = {"command": ["/bin/sh", "-e", "-c", text], "env": [{"name": "MODEL", "value": "/models/llama"}]}
    found = adopting(spec("deployment", model_names=["llama", "llama-chat"]), "by-hand", deployment(container))
    assert found.payload.content()["adopted"]["folder"] == "clones/llama"


def test_an_engine_is_asked_where_its_words_say_and_not_where_its_ports_are_noted() -> None:
    container = {"args": WORDS, "ports": [{"containerPort": 8080}]}
    found = adopting(spec("deployment", model_names=["llama", "llama-chat"]), "by-hand", deployment(container))
    assert found.payload.content()["adopted"]["port"] == 9000


def test_where_a_variable_comes_from_is_told() -> None:
    ref = {"name": "settings", "key": "level"}
    given = [{"name": "LEVEL", "valueFrom": {"configMapKeyRef": ref}}, {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]  # fmt: skip
    container = {"args": WORDS, "env": given, "envFrom": [{"prefix": "S_", "secretRef": {"name": "all"}}]}
    told = adopting(spec("deployment", model_names=["llama", "llama-chat"]), "by-hand", deployment(container)).differs
    text = "\n".join(told)
    assert "env.LEVEL: level of ConfigMap settings → none" in text
    assert "env.POD: metadata.name → none" in text
    assert "env.S_*: every key of Secret all → none" in text


@pytest.mark.parametrize(
    ("uri", "path", "folder"),
    [
        ("pvc://vllm/hub", "/mnt/models/llama/v1", "hub/llama/v1"),
        ("pvc://vllm", "/mnt/models/llama", "llama"),
        ("pvc://vllm/llama", "/mnt/models", "llama"),
        ("pvc://vllm/llama/", "/mnt/models/", "llama"),
    ],
)
def test_the_weights_of_a_kserve_service_are_where_its_words_say(uri: str, path: str, folder: str) -> None:
    objects = isvc(args=[f"--model={path}", "--served-model-name=llama"], **of_model(storageUri=uri))
    payload = adopting(spec("kserve"), "llama", *objects).payload.content()
    assert (payload["claim"], payload["adopted"]["folder"]) == ("vllm", folder)


def test_what_kserve_made_of_a_runtime_that_is_not_the_namespaces_is_read() -> None:
    """A ClusterServingRuntime, which a namespaced Role does not show."""
    deployed = resolved(
        "--model=/mnt/models/deep", "--served-model-name=llama", "--port=9000", ports=[{"containerPort": 9000}]
    )
    payload = adopting(spec("kserve"), "llama", isvc()[1], deployed).payload.content()
    assert (payload["adopted"]["port"], payload["adopted"]["folder"], payload["image"]) == (9000, "llama/deep", "hf:2")
