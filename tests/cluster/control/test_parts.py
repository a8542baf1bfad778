"""The control-plane tier's parts are what they say: a real API server, and a played node
that its client cannot tell from a kubelet.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.parts.cluster import Cluster, running_control_plane
from tests.parts.cluster.played import IDLE, PlayedNode, played_node
from tests.parts.cluster.played_pod import loopback
from tests.parts.cluster.provisioner import CLASS
from tests.parts.cluster.waiting import until

SERVER = "import http.server,sys,os; os.chdir('/data'); http.server.test(http.server.SimpleHTTPRequestHandler, port=8000, bind='0.0.0.0')"


@pytest.fixture(scope="module")
def node(cluster: Cluster) -> Iterator[PlayedNode]:
    with played_node(cluster) as made:
        made.entrypoints |= {"python": (sys.executable,), "idle": IDLE}
        yield made


def pod(namespace: str, name: str, container: dict[str, Any], **spec: Any) -> dict[str, Any]:
    meta = {"name": name, "namespace": namespace, "labels": {"app": name}}
    spec = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "python", **container}], **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def status_of(cluster: Cluster, namespace: str, name: str) -> dict[str, Any]:
    status: dict[str, Any] = json.loads(cluster.kubectl("get", "pod", "-n", namespace, name, "-o", "json"))["status"]
    return status


def test_a_token_ends_when_the_test_wants_it_to(cluster: Cluster, namespace: str) -> None:
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "view", "namespace": namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": namespace}],
    }  # fmt: skip
    cluster.apply(binding)

    def asked(token: str) -> int:
        with httpx.Client(verify=str(cluster.authority.ca), trust_env=False) as client:
            headers = {"Authorization": f"Bearer {token}"}
            return client.get(f"{cluster.url}/api/v1/namespaces/{namespace}/pods", headers=headers).status_code

    token = cluster.token(namespace, "default", 2)
    assert asked(token) == 200
    until(lambda: asked(token) == 401, 20, "the token never ended")


def test_the_api_server_is_killed_and_comes_back_with_its_state(tmp_path: Path) -> None:
    with running_control_plane(tmp_path) as own:
        with own.namespace() as namespace:
            own.programs.stop("kube-apiserver", grace=0)
            assert not own.is_ready()
            own.start_apiserver()
            assert namespace in own.kubectl("get", "namespaces", "-o", "name")
        left = [process.pid for process in own.programs.running]
    assert left
    assert not any(Path(f"/proc/{pid}").exists() for pid in left)


def test_a_second_start_on_a_folder_ends_what_the_first_left(tmp_path: Path) -> None:
    first = Cluster(tmp_path)
    first.start_etcd()
    (pid,) = [process.pid for process in first.programs.running]
    with running_control_plane(tmp_path) as second:
        assert second.is_ready()
        assert first.programs.running[0].poll() is not None or not Path(f"/proc/{pid}").exists()


def test_a_claim_waits_for_its_pod_then_binds_and_keeps_files(
    cluster: Cluster, node: PlayedNode, namespace: str
) -> None:
    cluster.apply(
        {
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c", "namespace": namespace},
            "spec": {"storageClassName": CLASS, "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        },
    )  # fmt: skip
    mount = {"volumeMounts": [{"name": "v", "mountPath": "/models"}]}
    volumes = {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}
    write = pod(namespace, "write", {"args": ["-c", "open('/models/x', 'w').write('kept')"], **mount}, **volumes)
    read = pod(namespace, "read", {"args": ["-c", "print(open('/models/x').read())"], **mount}, **volumes)
    for one in (write, read):
        cluster.apply(one)
        cluster.kubectl(
            "wait",
            "--for=jsonpath={.status.phase}=Succeeded",
            "-n",
            namespace,
            f"pod/{one['metadata']['name']}",
            "--timeout=60s",
        )
    assert cluster.kubectl("logs", "-n", namespace, "read") == "kept\n"
    cluster.kubectl("delete", "-n", namespace, "pod/write", "pod/read", "pvc/c")


def test_a_service_is_reached_by_its_name_in_a_mounted_file(cluster: Cluster, node: PlayedNode, namespace: str) -> None:
    probe = {"httpGet": {"path": "/said", "port": 8000}, "periodSeconds": 1}
    serve = {"args": ["-c", SERVER], "readinessProbe": probe, "volumeMounts": [{"name": "v", "mountPath": "/data"}]}
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": namespace}}
    cluster.apply(
        config | {"data": {"said": "hello", "where": f"http://web.{namespace}.svc:8080/said"}},
        {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": namespace},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 8080, "targetPort": 8000}]},
        },
        pod(namespace, "web", serve, volumes=[{"name": "v", "configMap": {"name": "c"}}]),
    )  # fmt: skip
    cluster.kubectl("wait", "--for=condition=Ready", "-n", namespace, "pod/web", "--timeout=60s")
    address = json.loads(cluster.kubectl("get", "service", "-n", namespace, "web", "-o", "json"))["spec"]["clusterIP"]
    until(lambda: answers(f"http://{loopback(address)}:8080/said"), 20, "the Service does not answer")
    ask = {
        "args": ["-c", "import urllib.request as u; print(u.urlopen(open('/c/where').read()).read().decode())"],
        "volumeMounts": [{"name": "v", "mountPath": "/c"}],
    }
    cluster.apply(pod(namespace, "ask", ask, volumes=[{"name": "v", "configMap": {"name": "c"}}]))
    cluster.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "-n", namespace, "pod/ask", "--timeout=60s")
    assert cluster.kubectl("logs", "-n", namespace, "ask") == "hello\n"


def answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).is_success
    except httpx.TransportError:
        return False


def test_a_deployment_of_an_image_that_is_not_there_says_so(cluster: Cluster, node: PlayedNode, namespace: str) -> None:
    cluster.apply(pod(namespace, "lost", {"image": "nowhere"}))

    def reason() -> Any:
        waiting = [
            one["state"].get("waiting", {})
            for one in status_of(cluster, namespace, "lost").get("containerStatuses", ())
        ]
        return [one["reason"] for one in waiting] == ["ImagePullBackOff"] and "not found" in waiting[0]["message"]

    until(reason, 30, "no reason was given")


def test_a_container_that_fails_is_started_again_and_says_how_it_ended(
    cluster: Cluster, node: PlayedNode, namespace: str
) -> None:
    cluster.apply(
        pod(namespace, "bad", {"args": ["-c", "print('going down'); raise SystemExit(3)"]}, restartPolicy="Always")
    )

    def last() -> Any:
        (one,) = status_of(cluster, namespace, "bad").get("containerStatuses", [{}])
        return one.get("restartCount", 0) >= 1 and one["lastState"].get("terminated")

    assert until(last, 30, "it was not started again")["exitCode"] == 3
    until(
        lambda: cluster.kubectl("logs", "-n", namespace, "bad", "--previous") == "going down\n", 20, "its log was lost"
    )


def test_a_pod_goes_on_while_the_api_server_is_away_and_its_end_is_told_after(tmp_path: Path) -> None:
    with running_control_plane(tmp_path) as own, played_node(own) as played, own.namespace() as namespace:
        played.entrypoints["python"] = (sys.executable,)
        go_on = tmp_path / "go-on"
        code = f"import pathlib, time\nwhile not pathlib.Path({str(go_on)!r}).exists(): time.sleep(0.1)\nprint('done')"
        own.apply(pod(namespace, "p", {"args": ["-c", code]}))
        own.kubectl("wait", "--for=condition=Ready", "-n", namespace, "pod/p", "--timeout=60s")
        own.programs.stop("kube-apiserver", grace=0)
        go_on.touch()
        (player,) = played.players.values()
        until(lambda: not player.children, 20, "it did not go on")
        own.start_apiserver()
        own.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", "-n", namespace, "pod/p", "--timeout=60s")
        assert own.kubectl("logs", "-n", namespace, "p") == "done\n"


def test_an_idle_pod_is_ready_and_goes_when_it_is_deleted(cluster: Cluster, node: PlayedNode, namespace: str) -> None:
    cluster.apply(pod(namespace, "still", {"image": "idle"}))
    cluster.kubectl("wait", "--for=condition=Ready", "-n", namespace, "pod/still", "--timeout=60s")
    cluster.kubectl("delete", "pod", "-n", namespace, "still", "--timeout=20s")
    assert cluster.kubectl("get", "pods", "-n", namespace, "-o", "name") == ""
