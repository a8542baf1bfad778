"""The CPU engine's image: real vLLM answers in a pod, called as vllm/vllm-openai is, under the restricted level."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cluster.node.test_parts import answered, pod, succeeded, wait
from tests.parts.cluster import images
from tests.parts.cluster.node import Node
from tests.parts.cluster.provisioner import CLASS, folder_of
from tests.parts.cluster.waiting import until

MODEL = "SmolLM2-135M-Instruct"


def claim_with_model(node: Node, namespace: str, model: Path, python: str) -> list[dict[str, Any]]:
    """The volumes of a pod that serves ``model`` from a claim; a first pod has bound it."""
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "vllm", "namespace": namespace}}
    node.apply(
        claim | {"spec": {"storageClassName": CLASS, "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}
    )
    volumes = [{"name": "models", "persistentVolumeClaim": {"claimName": "vllm"}}]
    first = {"image": python, "command": ["true"], "volumeMounts": [{"name": "models", "mountPath": "/models"}]}
    node.apply(pod(namespace, "first", first, volumes=volumes))
    succeeded(node, namespace, "first")
    (volume,) = [
        one for one in json.loads(node.kubectl("get", "pv", "-o", "json"))["items"] if one["spec"]["claimRef"]["namespace"] == namespace
    ]
    shutil.copytree(model, folder_of(volume) / model.name)
    return volumes


@pytest.mark.timeout(900)
def test_vllm_answers_in_a_pod(node: Node, namespace: str) -> None:
    volumes = claim_with_model(node, namespace, images.model(), images.push_base(node.registry))
    volumes += [{"name": "tmp", "emptyDir": {}}, {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "512Mi"}}]
    mounts = {"models": "/models", "tmp": "/tmp", "shm": "/dev/shm"}  # noqa: S108
    main = {
        "image": images.push_engine(node.registry),
        "args": ["--model", f"/models/{MODEL}", "--served-model-name", "m", "--port", "8000", "--enforce-eager", "--max-model-len", "1024"],
        "env": [{"name": "HOME", "value": "/tmp"}],  # noqa: S108
        "resources": {"limits": {"memory": "6Gi"}},
        "readinessProbe": {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 1},
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in mounts.items()],
    }
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "engine", "namespace": namespace}}
    node.apply(
        pod(namespace, "engine", main, volumes=volumes), service | {"spec": {"selector": {"app": "engine"}, "ports": [{"port": 8000}]}}
    )
    wait(node, namespace, "engine", "condition=Ready", 600)
    url = f"http://engine.{namespace}.svc:8000"
    until(lambda: answered(f"{url}/health") is not None, 20, "the Service does not answer")
    asked = {"model": "m", "messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 32, "temperature": 0}
    said = httpx.post(f"{url}/v1/chat/completions", json=asked, trust_env=False, timeout=60).json()
    assert "Paris" in said["choices"][0]["message"]["content"]
