"""The node tier's parts are what they say: pods run under the restricted level, claims
bind, names answer, the registry refuses when told to.
"""

from __future__ import annotations

import json
import socket
from typing import Any

import httpx
import pytest

from tests.parts.cluster import images
from tests.parts.cluster.node import Node
from tests.parts.cluster.provisioner import CLASS
from tests.parts.cluster.waiting import until

HARDENED = {
    "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True,
}  # fmt: skip
POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "runAsGroup": 1000,
    "fsGroup": 1000,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def pod(namespace: str, name: str, container: dict[str, Any], **spec: Any) -> dict[str, Any]:
    meta = {"name": name, "namespace": namespace, "labels": {"app": name}}
    main = {"name": "main", "securityContext": HARDENED, **container}
    spec = {
        "restartPolicy": "Never", "securityContext": POD_SECURITY, "imagePullSecrets": [{"name": "pull"}], "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 1, "containers": [main], **spec,
    }  # fmt: skip
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def wait(node: Node, namespace: str, name: str, what: str, seconds: int = 60) -> None:
    try:
        node.kubectl("wait", f"--for={what}", "-n", namespace, f"pod/{name}", f"--timeout={seconds}s")
    except RuntimeError as error:
        error.add_note(node.kubectl("describe", "pod", "-n", namespace, name))
        raise


def succeeded(node: Node, namespace: str, name: str) -> str:
    """Its log, once it has ended well."""
    wait(node, namespace, name, "jsonpath={.status.phase}=Succeeded")
    return node.kubectl("logs", "-n", namespace, name)


@pytest.fixture(scope="session")
def python(node: Node) -> str:
    return images.push_base(node.registry)


def test_a_pod_runs_and_its_log_is_read_through_the_api_server(node: Node, namespace: str, python: str) -> None:
    node.apply(
        pod(namespace, "p", {"image": python, "command": ["python3", "-c", "import os; print('uid', os.getuid())"]})
    )
    assert succeeded(node, namespace, "p") == "uid 1000\n"


def test_a_claim_waits_for_its_pod_binds_and_keeps_files(node: Node, namespace: str, python: str) -> None:
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c", "namespace": namespace}}
    spec = {"storageClassName": CLASS, "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    node.apply(claim | {"spec": spec})
    for name, code in (("write", "open('/models/x', 'w').write('kept')"), ("read", "print(open('/models/x').read())")):
        mounted = {"volumeMounts": [{"name": "v", "mountPath": "/models"}]}
        made = pod(namespace, name, {"image": python, "command": ["python3", "-c", code], **mounted})
        made["spec"]["volumes"] = [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]
        node.apply(made)
        succeeded(node, namespace, name)
    assert node.kubectl("logs", "-n", namespace, "read") == "kept\n"


def test_a_service_answers_by_its_name_in_a_pod_and_in_the_test(node: Node, namespace: str, python: str) -> None:
    serve: dict[str, Any] = {
        "image": python,
        "command": ["python3", "-m", "http.server", "8000", "--directory", "/etc"],
        "ports": [{"containerPort": 8000}],
    }
    serve["readinessProbe"] = {"httpGet": {"path": "/debian_version", "port": 8000}, "periodSeconds": 1}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": namespace}}
    node.apply(
        pod(namespace, "web", serve),
        service | {"spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8000}]}},
    )
    wait(node, namespace, "web", "condition=Ready")
    url = f"http://web.{namespace}.svc/debian_version"
    seen = until(lambda: answered(url), 30, f"{url} does not answer")
    code = f"import urllib.request as u; print(u.urlopen('{url}').read().decode(), end='')"
    node.apply(pod(namespace, "ask", {"image": python, "command": ["python3", "-c", code]}))
    assert succeeded(node, namespace, "ask") == seen


def answered(url: str) -> str | None:
    try:
        return httpx.get(url, trust_env=False, timeout=2).text
    except httpx.TransportError:
        return None


def test_nothing_outside_is_reached(node: Node) -> None:
    with pytest.raises(OSError, match=r"timed out|unreachable|No route"):
        socket.create_connection(("198.51.100.1", 80), timeout=2)


def test_the_project_s_image_runs_its_command_as_nobody_special(node: Node, namespace: str) -> None:
    image = images.push_project(node.registry)
    security = {**POD_SECURITY, "runAsUser": 10001, "runAsGroup": 10001}
    temporary = {"volumes": [{"name": "tmp", "emptyDir": {}}], "securityContext": security}
    main = {
        "image": image,
        "command": ["deliver", "plan", "/nowhere.yaml"],
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
    }
    node.apply(pod(namespace, "cli", main, **temporary))
    wait(node, namespace, "cli", "jsonpath={.status.phase}=Failed", 120)
    ended = json.loads(node.kubectl("get", "pod", "-n", namespace, "cli", "-o", "json"))["status"]["containerStatuses"][
        0
    ]
    assert ended["state"]["terminated"]["exitCode"] == 2
    assert "/nowhere.yaml" in node.kubectl("logs", "-n", namespace, "cli")


def pull_problem(node: Node, namespace: str, name: str) -> str:
    found = json.loads(
        node.kubectl("get", "events", "-n", namespace, "--field-selector", f"involvedObject.name={name}", "-o", "json")
    )
    return "\n".join(one["message"] for one in found["items"] if one["reason"] == "Failed")


@pytest.mark.parametrize("status", [401, 429, 503])
def test_the_registry_refuses_when_told_to_and_then_the_pod_runs(node: Node, namespace: str, status: int) -> None:
    image = images.push_new(node.registry, "new")
    with node.registry.failing(status, WWW_Authenticate='Basic realm="test"', Retry_After="1"):
        node.apply(pod(namespace, "p", {"image": image}))
        until(
            lambda: f" {status} " in pull_problem(node, namespace, "p"), 60, lambda: pull_problem(node, namespace, "p")
        )
    wait(node, namespace, "p", "condition=Ready", 90)


def test_an_image_is_not_pulled_without_the_password(node: Node, namespace: str) -> None:
    image = images.push_new(node.registry, "new")
    node.apply(pod(namespace, "p", {"image": image}, imagePullSecrets=[]))
    until(
        lambda: "401 Unauthorized" in pull_problem(node, namespace, "p"), 60, lambda: pull_problem(node, namespace, "p")
    )
