"""The fetch Job: on a node that has the device, and with the endpoint, the proxy and the
authority of the machine that delivers.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest
from huggingface_hub import close_session

from model_delivery.base import Finding, Interrupted
from model_delivery.flows.deliver import deliver
from model_delivery.places.guarded import observed
from model_delivery.spec import DeliverySpec
from model_delivery.values import Ref
from tests.cluster.control.lab import ENGINE, RUNNER, Lab, delivering_lab
from tests.fetch.test_transfer import Proxy
from tests.parts.cluster import Cluster
from tests.parts.cluster.played import PlayedNode, played_node
from tests.parts.cluster.waiting import until
from tests.parts.hubs.huggingface import running_hub
from tests.parts.tiny_model import tiny_model

SMOKE_ONLY = {"smoke": {"max_tokens": 16}, "throughput": None}
MERGE = {"Content-Type": "application/merge-patch+json"}


@pytest.fixture
def lab(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: PlayedNode) -> Iterator[Lab]:
    with delivering_lab(cluster, tmp_path, monkeypatch, node) as made:
        yield made


def fetched(lab: Lab, spec: DeliverySpec, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Deliver until the model is on the claim, and no further; the Job that fetched
    it.
    """

    def stop(when: Literal["before", "after"], verb: str, ref: Ref) -> None:
        if ref.kind.name == "Deployment":
            raise Interrupted(Finding("todo", "enough"))

    with observed(stop), pytest.raises(Interrupted):
        deliver.fn(spec)

    def succeeded() -> dict[str, Any] | None:
        (job,) = json.loads(lab.cluster.kubectl("get", "job", "-n", lab.namespace, "-o", "json"))["items"]
        return dict(job) if job["status"].get("succeeded") == 1 else None

    return until(succeeded, 30, "the Job did not succeed")


def environment(job: dict[str, Any]) -> dict[str, str]:
    step = next(one for one in job["spec"]["template"]["spec"]["containers"] if one["name"] == "step")
    return {one["name"]: one["value"] for one in step["env"]}


def test_the_fetch_runs_where_the_device_is_whatever_keeps_others_away(
    lab: Lab, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    taints = [{"key": "nvidia.com/gpu", "effect": "NoSchedule", "value": "present"}]
    path = f"/api/v1/nodes/{lab.node.name}"
    with played_node(cluster, "no-gpu") as other:
        other.entrypoints |= {ENGINE: lab.node.entrypoints[ENGINE], RUNNER: lab.node.entrypoints[RUNNER]}
        cluster.client.patch(path, json={"spec": {"taints": taints}}, headers=MERGE).raise_for_status()
        try:
            job = fetched(
                lab, lab.spec(gates=SMOKE_ONLY, serving={"resources": {"limits": {"nvidia.com/gpu": 1}}}), monkeypatch
            )
        finally:
            cluster.client.patch(path, json={"spec": {"taints": None}}, headers=MERGE).raise_for_status()
        mine = {"labelSelector": f"batch.kubernetes.io/job-name={job['metadata']['name']}"}
        (pod,) = cluster.listed(f"/api/v1/namespaces/{lab.namespace}/pods", **mine)
        assert pod["spec"]["nodeName"] == lab.node.name
        assert "nvidia.com/gpu" not in json.dumps([one.get("resources") for one in pod["spec"]["containers"]]), (
            "it needs none itself"
        )


def test_a_hub_with_a_private_authority_is_reached_from_the_job(
    lab: Lab, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crt, key = cluster.authority.issue("hub", "hub", names=["localhost"])
    both = tmp_path / "hub.pem"
    both.write_text(crt.read_text() + key.read_text())
    with running_hub(tiny_model(tmp_path / "private"), both) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("SSL_CERT_FILE", str(cluster.authority.ca))
        close_session()
        said = environment(fetched(lab, lab.spec(gates=SMOKE_ONLY), monkeypatch))
        assert said["HF_ENDPOINT"] == hub.url
        assert said["SSL_CERT_FILE"] != str(cluster.authority.ca), "a file of the pod's own"
        assert hub.sent > 0
        assert lab.hub.sent == 0


def test_the_environments_proxy_is_used_by_the_job(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Proxy,), {"seen": seen}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", lab.hub.url.replace("127.0.0.1", "localhost"))
    for name, value in (("HTTP_PROXY", f"http://127.0.0.1:{server.server_port}"), ("NO_PROXY", "127.0.0.1")):
        monkeypatch.setenv(name, value)
        monkeypatch.setenv(name.lower(), value)
    try:
        said = environment(fetched(lab, lab.spec(gates=SMOKE_ONLY), monkeypatch))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert said["http_proxy"] == f"http://127.0.0.1:{server.server_port}"
    assert any(path.endswith(".safetensors") for path in seen), "the bytes came through it"
