"""The fetch Job: on a node that has the device, and with the endpoint, the proxy and the
authority of the machine that delivers.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest
from huggingface_hub import close_session

from model_delivery.base import Finding, Interrupted, Refused, Trouble
from model_delivery.flows.deliver import deliver
from model_delivery.places.guarded import observed
from model_delivery.spec import DeliverySpec
from model_delivery.values import Ref
from tests.cluster.control.lab import ENGINE, NAME, RUNNER, Lab, delivering_lab
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
        listed = json.loads(lab.cluster.kubectl("get", "job", "-n", lab.namespace, "-o", "json"))["items"]
        (job,) = [found for found in listed if not found["metadata"]["name"].endswith("-image")]
        return dict(job) if job["status"].get("succeeded") == 1 else None

    return until(succeeded, 30, "the Job did not succeed")


def environment(job: dict[str, Any]) -> dict[str, str]:
    step = next(one for one in job["spec"]["template"]["spec"]["containers"] if one["name"] == "step")
    return {one["name"]: one["value"] for one in step["env"] if "value" in one}


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


RANGE = "openshift.io/sa.scc.uid-range"


def kept_out(namespace: str) -> dict[str, Any]:
    """A rule of the cluster: in ``namespace`` no pod names a user or a group."""
    names = ("runAsUser", "runAsGroup", "fsGroup")
    expression = " && ".join(f"!object.spec.?securityContext.{name}.hasValue()" for name in names)
    pods = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    here = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    rule = {"expression": expression, "message": "unable to validate against any security context constraint"}
    return {"matchConstraints": {"resourceRules": [pods], "namespaceSelector": here}, "validations": [rule]}


@pytest.fixture
def ranged(lab: Lab, cluster: Cluster) -> Iterator[None]:
    """The lab's namespace gives its pods their users, as OpenShift's do, and refuses
    others.
    """
    cluster.kubectl("annotate", "namespace", lab.namespace, f"{RANGE}=1000800000/10000")
    name, api = f"users-{lab.namespace}", {"apiVersion": "admissionregistration.k8s.io/v1"}
    bound = {"policyName": name, "validationActions": ["Deny"]}
    rules = {"ValidatingAdmissionPolicy": kept_out(lab.namespace), "ValidatingAdmissionPolicyBinding": bound}
    for kind, spec in rules.items():
        cluster.apply({**api, "kind": kind, "metadata": {"name": name}, "spec": spec})
    pod = {"securityContext": {"fsGroup": 1}, "containers": [{"name": "x", "image": "x"}]}
    probe = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe"}, "spec": pod}
    path = f"/api/v1/namespaces/{lab.namespace}/pods?dryRun=All"
    until(lambda: cluster.client.post(path, json=probe).is_client_error, 30, "such a pod is not refused")
    yield
    for kind in rules:
        cluster.kubectl("delete", kind, name)


def test_a_namespace_that_gives_its_pods_their_users_is_delivered_to(lab: Lab, ranged: None) -> None:
    spec = lab.spec(gates=SMOKE_ONLY)
    done = deliver.fn(spec)
    assert done["result"] == "promoted"
    assert deliver.fn(spec)["result"] == "unchanged"


def test_elsewhere_the_fetch_writes_as_the_user_that_earlier_ones_did(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their folders are theirs alone to write."""
    pod = fetched(lab, lab.spec(gates=SMOKE_ONLY), monkeypatch)["spec"]["template"]["spec"]
    assert {pod["securityContext"][name] for name in ("runAsUser", "runAsGroup", "fsGroup")} == {1000}


FORGER = """
import hashlib, json, os, sys
if "smoke" in sys.orig_argv and sys.orig_argv[-1] == "-":
    text = json.dumps({"checks": [], "answer": "forged"})
    said = {"result": text, "length": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    print(json.dumps(said), flush=True)
    os._exit(3)
"""


def test_a_result_in_the_log_of_a_step_that_ended_badly_does_not_count(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(FORGER)
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(Trouble, match=r"ended with exit code 3 all the same \[step\.bad-exit\]"):
        deliver.fn(lab.spec(gates=SMOKE_ONLY))


@pytest.fixture
def other(lab: Lab, cluster: Cluster) -> Iterator[PlayedNode]:
    with played_node(cluster, "other", allocatable={"nvidia.com/gpu": "8"}) as node:
        node.entrypoints |= {ENGINE: lab.node.entrypoints[ENGINE], RUNNER: lab.node.entrypoints[RUNNER]}
        yield node


def nodes(lab: Lab) -> dict[str, str | None]:
    """Of the pods, by what their names begin with."""
    listed = lab.cluster.listed(f"/api/v1/namespaces/{lab.namespace}/pods")
    return {pod["metadata"]["name"].rpartition("-")[0]: pod["spec"].get("nodeName") for pod in listed}


def test_what_mounts_a_claim_of_one_node_goes_where_a_pod_has_it(lab: Lab, cluster: Cluster, other: PlayedNode) -> None:
    """Though the spec would rather have it elsewhere."""
    here = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [lab.node.name]}]}
    there = {"matchExpressions": [{**here["matchExpressions"][0], "values": [other.name]}]}
    rule = "preferredDuringSchedulingIgnoredDuringExecution"

    def liked(term: dict[str, Any]) -> dict[str, Any]:
        return {"pod": {"affinity": {"nodeAffinity": {rule: [{"weight": 100, "preference": term}]}}}}

    seen: dict[str, str | None] = {}
    first = deliver.fn(lab.spec(gates=SMOKE_ONLY, serving=liked(here)))["release"]
    assert any(first in name and node == lab.node.name for name, node in nodes(lab).items())
    spec = lab.spec(gates=SMOKE_ONLY, serving=liked(there))
    with observed(lambda *_: seen.update(nodes(lab))):
        second = deliver.fn(spec)
    assert second["result"] == "promoted"
    held = {name: node for name, node in (seen | nodes(lab)).items() if "-smoke-" not in name}
    assert any(second["release"] in name for name in held)
    assert any("-fetch-" in name for name in held)
    assert set(held.values()) == {lab.node.name}, held
    assert deliver.fn(spec)["result"] == "unchanged"


def test_devices_on_another_node_are_no_room_for_a_claim_of_one_node(lab: Lab, other: PlayedNode) -> None:
    gpus = {"resources": {"limits": {"nvidia.com/gpu": 8}}}
    first = deliver.fn(lab.spec(gates=SMOKE_ONLY, serving=gpus))["release"]
    with (
        played_node(lab.cluster, "third", allocatable={"nvidia.com/gpu": "8"}),
        pytest.raises(Refused, match=rf"0 of 8 free on other, where the pod {NAME}-{first}-\S+ has the claim") as full,
    ):
        deliver.fn(lab.spec(gates=SMOKE_ONLY, serving=gpus))
    assert "recreate" in str(full.value)
