"""The stand-in gateway splits traffic as an HTTPRoute's weights say, and says so in its
status.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from model_delivery.places.cluster.place import Cluster as Place
from model_delivery.targets.deployment import Deployment, DeploymentKey
from model_delivery.targets.kubernetes.kinds import HTTP_ROUTE
from model_delivery.values import Address, Desired
from tests.cluster.control.test_parts import pod
from tests.parts.cluster import Cluster, running_control_plane
from tests.parts.cluster.played import played_node
from tests.parts.cluster.played_pod import loopback
from tests.parts.cluster.waiting import until
from tests.parts.gateway import StandIn, definitions, running_gateway, share
from tests.parts.ports import free_port

HOST = "weights.test"  # of no other test: their routes go after their namespaces
SAY = """
import http.server, sys
class Say(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(sys.argv[1].encode())
http.server.test(Say, port=8000, bind='0.0.0.0')
"""


@pytest.fixture(scope="module")
def gateway(cluster: Cluster) -> Iterator[StandIn]:
    with (
        played_node(cluster, "behind-gateway") as node,
        running_gateway(cluster, "127.0.0.1", free_port(), loopback) as made,
    ):
        node.entrypoints["say"] = (sys.executable,)
        yield made


def route(namespace: str, host: str = HOST, /, **weights: int) -> dict[str, Any]:
    backends = [{"name": name, "port": 8080, "weight": weight} for name, weight in weights.items()]
    spec = {"parentRefs": [{"name": "gateway"}], "hostnames": [host], "rules": [{"backendRefs": backends}]}
    meta = {"name": "chat", "namespace": namespace}
    return {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": meta, "spec": spec}


def behind(namespace: str, name: str) -> list[dict[str, Any]]:
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace}}
    probe = {"httpGet": {"path": "/", "port": 8000}}
    return [
        pod(namespace, name, {"image": "say", "args": ["-c", SAY, name], "readinessProbe": probe}),
        service | {"spec": {"selector": {"app": name}, "ports": [{"port": 8080, "targetPort": 8000}]}},
    ]


def taken(cluster: Cluster, namespace: str) -> bool:
    """Has the gateway seen the route as it stands now?"""
    found = json.loads(cluster.kubectl("get", "httproute", "-n", namespace, "chat", "-o", "json"))
    told = [one for parent in found.get("status", {}).get("parents", ()) for one in parent["conditions"]]
    return bool(told) and all(
        (one["status"], one["observedGeneration"]) == ("True", found["metadata"]["generation"]) for one in told
    )


def test_traffic_follows_the_weights_of_a_route(cluster: Cluster, namespace: str, gateway: StandIn) -> None:
    cluster.apply(gateway.gateway(namespace), *behind(namespace, "old"), *behind(namespace, "new"))
    cluster.kubectl("wait", "--for=condition=Ready", "-n", namespace, "pod/old", "pod/new", "--timeout=60s")
    with httpx.Client(base_url=gateway.url, headers={"Host": HOST}, trust_env=False) as client:
        assert client.get("/").status_code == 404
        for weights in ({"old": 100, "new": 0}, {"old": 90, "new": 10}, {"old": 0, "new": 100}):
            cluster.apply(route(namespace, **weights))
            until(lambda: taken(cluster, namespace), 20, "the gateway does not take the route")
            until(lambda: client.get("/").status_code == 200, 20, "no backend answers")
            said = Counter(client.get("/").text for _ in range(100))
            assert said == Counter({name: weight for name, weight in weights.items() if weight})


def test_a_route_to_a_service_that_is_not_there_says_so(cluster: Cluster, namespace: str, gateway: StandIn) -> None:
    cluster.apply(gateway.gateway(namespace), route(namespace, nobody=1))

    def reasons() -> set[str]:
        found = json.loads(cluster.kubectl("get", "httproute", "-n", namespace, "chat", "-o", "json"))
        return {one["reason"] for parent in found.get("status", {}).get("parents", ()) for one in parent["conditions"]}

    until(lambda: "BackendNotFound" in reasons(), 20, "its status says nothing")


def test_a_route_comes_to_a_cluster_whose_gateway_api_knows_no_timeouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_control_plane(tmp_path) as cluster:
        for file in definitions():
            made = yaml.safe_load(file.read_text())
            for version in made["spec"]["versions"] if "httproutes" in file.name else ():
                spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
                del spec["properties"]["rules"]["items"]["properties"]["timeouts"]
            cluster.kubectl("apply", "--server-side", "-f", "-", input=json.dumps(made))
        told = f"/openapi/v3/apis/{HTTP_ROUTE.api}"
        until(lambda: "HTTPRouteList" in cluster.client.get(told).text, 30, "its schema is not told")
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
        target = Deployment(DeploymentKey(namespace="default", gateway="gateway"))
        (wanted,) = target.compose(Desired("small", address=Address("small", 80)))
        assert Place(None, "default").put(wanted).action == "created"
        assert Place(None, "default").put(wanted, dry_run=True).action == "unchanged"


@pytest.mark.parametrize("weights", [(1,), (90, 10), (99, 1), (1, 1, 1), (0, 7)])
def test_slots_are_shared_as_evenly_as_they_can_be(weights: tuple[int, ...]) -> None:
    slots = share(weights)
    assert len(slots) == 100
    assert all(abs(slots.count(index) - 100 * weight / sum(weights)) < 1 for index, weight in enumerate(weights))
