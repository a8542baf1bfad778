"""The stand-in for T9k's controller does what T9k's example does by hand: objects by
kubectl, an address by host, a canary's share of the traffic.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest

from tests.cluster.control.test_gateway import SAY
from tests.parts.cluster import Cluster
from tests.parts.cluster.played import PlayedNode
from tests.parts.cluster.played_pod import loopback
from tests.parts.cluster.waiting import until
from tests.parts.gateway import StandIn as Gateway
from tests.parts.gateway import running_gateway
from tests.parts.ports import free_port
from tests.parts.t9k import StandIn
from tests.parts.t9k.template import filled


@pytest.fixture
def gateway(cluster: Cluster, namespace: str, node: PlayedNode, t9k: StandIn) -> Iterator[Gateway]:
    node.entrypoints["say"] = (sys.executable,)
    with running_gateway(cluster, "127.0.0.1", free_port(), loopback) as made:
        cluster.apply(made.gateway(namespace))
        t9k.domain, t9k.gateway = "ksvc.test", f"{namespace}/gateway"
        yield made


def objects(namespace: str, *releases: str, **more: Any) -> list[dict[str, Any]]:
    about = {"apiVersion": "tensorstack.dev/v1beta1", "metadata": {"name": "chat", "namespace": namespace}}
    engine = {
        "name": "user-container",
        "image": "say",
        "args": ["-c", SAY, "{{.MODEL_NAME}}"],
        "ports": [{"containerPort": 8000}],
    }
    runtime = about | {
        "kind": "MLServiceRuntime",
        "spec": {"enabled": True, "template": {"spec": {"containers": [engine]}}},
    }
    entries = [
        {
            "name": name,
            "predictor": {"minReplicas": 1, "model": {"runtime": "chat", "parameters": {"MODEL_NAME": name}}},
        }
        for name in releases
    ]
    return [runtime, about | {"kind": "MLService", "spec": {"default": releases[0], "releases": entries, **more}}]


def status(cluster: Cluster, namespace: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cluster.kubectl("get", "mls", "chat", "-n", namespace, "-o", "json"))
    return dict(found.get("status", {}))


def test_a_service_made_by_hand_becomes_ready_and_a_canary_gets_its_share(
    cluster: Cluster, namespace: str, gateway: Gateway
) -> None:
    cluster.apply(*objects(namespace, "v1"))
    cluster.kubectl("wait", "--for=condition=Ready", "mls/chat", "-n", namespace, "--timeout=60s")
    cluster.apply(*objects(namespace, "v1", "v2", canary="v2", canaryTrafficPercent=30))
    until(lambda: "canaryRelease" in status(cluster, namespace), 60, "the canary is not seen")
    until(lambda: all(one["ready"] for one in status(cluster, namespace)["releases"]), 60, "the canary is not ready")
    seen = status(cluster, namespace)
    assert (seen["defaultRelease"], seen["canaryRelease"]) == ("v1", "v2")
    assert [one["trafficPercent"] for one in seen["releases"]] == [70, 30]

    def answers(url: str, times: int) -> Counter[str]:
        host = {"Host": url.removeprefix("http://")}
        return Counter(httpx.get(gateway.url, headers=host, trust_env=False).text for _ in range(times))

    def shared() -> bool:
        with suppress(httpx.TransportError):  # a new route reloads the gateway's stand-in
            return len(answers(seen["address"]["url"], 10)) == 2
        return False

    until(shared, 20, "the gateway does not share the traffic")
    assert answers(seen["address"]["url"], 100) == Counter({"v1": 70, "v2": 30})
    until(
        lambda: answers(seen["releases"][1]["url"], 3) == Counter({"v2": 3}),
        20,
        "the release's own address does not answer",
    )
    cluster.kubectl("delete", "mls", "chat", "-n", namespace)
    # the garbage collector looks for new kinds of owners every 30 s
    until(lambda: not cluster.listed(f"/apis/apps/v1/namespaces/{namespace}/deployments"), 90, "its Deployments stay")


def test_templates_are_gos_own() -> None:
    given = ["{{if .K}}{{.K}}{{else}}all{{end}}", "{{`{{`}} }}", "plain"]
    assert filled(given, {}) == ["all", "{{ }}", "plain"]
    assert filled(given[:1], {"K": "x y"}) == ["x y"]
    with pytest.raises(ValueError, match="unclosed action"):
        filled(["{{"], {})
