"""The stand-in gateway in front of pods, by a name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.node.test_parts import answered, pod, wait
from tests.parts.cluster import images
from tests.parts.cluster.node import ADDRESS, Node
from tests.parts.cluster.waiting import until
from tests.parts.gateway import StandIn, running_gateway


@pytest.fixture(scope="module")
def gateway(node: Node) -> Iterator[StandIn]:
    with running_gateway(node, ADDRESS, 80) as made:
        yield made


def test_a_pod_answers_behind_a_gateway(node: Node, namespace: str, gateway: StandIn) -> None:
    serve: dict[str, Any] = {
        "image": images.push_base(node.registry),
        "command": ["python3", "-m", "http.server", "8000", "-d", "/etc"],
    }
    route = {
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "web", "namespace": namespace},
        "spec": {
            "parentRefs": [{"name": "gateway"}], "hostnames": ["web.test"],
            "rules": [{"backendRefs": [{"name": "web", "port": 80, "weight": 1}]}],
        },
    }  # fmt: skip
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": namespace}}
    service |= {"spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8000}]}}
    node.apply(gateway.gateway(namespace), service, route, pod(namespace, "web", serve))
    wait(node, namespace, "web", "condition=Ready")
    until(lambda: (answered("http://web.test/debian_version") or "").startswith("12"), 20, "it does not answer")
