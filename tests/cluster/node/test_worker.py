"""Prefect's Kubernetes worker on a real node, with the shipped template, accounts and
Role alone: a deployment's run is a Job of the project's image, which delivers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun

from model_delivery.flows import registration
from model_delivery.flows.registration import Wanted
from model_delivery.spec import load_spec
from tests.cluster.node.lab import NAME, Lab, running_lab
from tests.parts import prefect_server as parts
from tests.parts.cluster import images
from tests.parts.cluster.node import ADDRESS, Node
from tests.parts.cluster.waiting import until
from tests.parts.tiny_model import tiny_model

pytestmark = pytest.mark.timeout(900)
MANIFESTS = Path(__file__).parents[3] / "manifests"
POOL, CA = "cluster", "/etc/authority/ca.pem"


@dataclass
class Operated:
    """A lab with a Prefect server and a worker in its namespace."""

    lab: Lab
    client: SyncPrefectClient

    def begin(self, label: str, *args: str, **more: Any) -> FlowRun:
        serving = {"args": ["--label", label, *args]}
        spec = load_spec(self.lab.spec(self.lab.images["engine"], serving=serving, **more))
        (proposal,) = registration.propose([spec], Wanted(POOL)).proposals
        registration.register(proposal)
        made = self.client.read_deployment_by_name(f"deliver/{NAME}")
        return self.client.create_flow_run_from_deployment(made.id)

    def ended(self, run: FlowRun, state: str, message: str) -> None:
        gone = parts.wait_for(self.client, run, 240)
        assert gone.state is not None
        assert (gone.state.name, message in str(gone.state.message)) == (state, True), gone.state

    def pods(self, run: FlowRun) -> list[dict[str, Any]]:
        return self.lab.there("pods", f"prefect.io/flow-run-id={run.id}")


@pytest.fixture(scope="module")
def operated(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operated]:
    pushed = {"runner": images.push_project(node.registry), "engine": images.push_timing_engine(node.registry)}
    folder = tmp_path_factory.mktemp("worker")
    with (
        running_lab(node, folder, tiny_model(folder / "model"), pushed) as lab,
        parts.running_server(folder / "prefect", ADDRESS) as server,
        parts.client_of(server) as client,
    ):
        node.apply(*shipped(lab, server))
        client.create_work_pool(WorkPoolCreate(name=POOL, type="kubernetes", base_job_template=template(lab)))
        node.kubectl("rollout", "status", "deployment/prefect-worker", "-n", lab.namespace, "--timeout=180s")
        yield Operated(lab, client)


def shipped(lab: Lab, server: parts.Server) -> Iterator[dict[str, Any]]:
    """What an administrator applies, with the edits that its comments name."""
    files = [
        MANIFESTS / "rbac/role.yaml",
        *(MANIFESTS / f"prefect/worker/{one}.yaml" for one in ("accounts", "worker")),
    ]
    for document in (one for file in files for one in yaml.safe_load_all(file.read_text())):
        document["metadata"]["namespace"] = lab.namespace
        for subject in document.get("subjects", ()):
            subject["namespace"] = lab.namespace
        if document["kind"] == "Deployment":
            pod = document["spec"]["template"]["spec"]
            pod["imagePullSecrets"] = [{"name": "pull"}]
            (container,) = pod["containers"]
            container["image"] = lab.images["runner"]
            (url,) = [one for one in container["env"] if one["name"] == "PREFECT_API_URL"]
            url["value"] = server.url
        yield document
    authority = {"ca.pem": lab.node.authority.ca.read_text()}
    meta = {"name": "authority", "namespace": lab.namespace}
    yield {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": authority}


def template(lab: Lab) -> dict[str, Any]:
    """The shipped one, edited as a pool's page in Prefect edits it."""
    made: dict[str, Any] = json.loads((MANIFESTS / "prefect/kubernetes-pool.json").read_text())
    variables = made["variables"]["properties"]
    variables["image"]["default"] = lab.images["runner"]
    variables["namespace"]["default"] = lab.namespace
    variables["image_pull_secrets"]["default"] = [{"name": "pull"}]
    variables["env"]["default"] = {"HF_ENDPOINT": lab.hub.url, "SSL_CERT_FILE": CA}
    variables["volumes"]["default"].append({"name": "authority", "configMap": {"name": "authority"}})
    variables["volume_mounts"]["default"].append({"name": "authority", "mountPath": str(Path(CA).parent)})
    return made


def test_a_deployments_run_delivers_and_the_next_one_finds_nothing_to_do(operated: Operated) -> None:
    operated.ended(operated.begin("first"), "Completed", "promoted")
    serving = operated.lab.record.serving
    assert serving
    operated.ended(operated.begin("first"), "Completed", f"unchanged (release {serving})")
    refused = operated.begin("refused", gates={"smoke": {"expect": "Rome"}, "throughput": None})
    operated.ended(refused, "Failed", "exit code 4")
    assert operated.lab.record.serving == serving


def test_a_run_whose_pod_is_evicted_is_started_again_and_adopts_what_it_had_begun(operated: Operated) -> None:
    operated.ended(operated.begin("before"), "Completed", "")
    run = operated.begin("evicted", "--start-delay", "20000")
    until(lambda: operated.lab.record.candidate, 120, "nothing is on its way")
    (pod,) = operated.pods(run)
    operated.lab.node.kubectl("delete", "pod", pod["metadata"]["name"], "-n", operated.lab.namespace, "--wait=false")
    operated.ended(run, "Completed", "promoted")
    assert len(operated.pods(run)) >= 1
    endings = [ended.outcome for ended in operated.lab.record.ended if ended.release == operated.lab.record.serving]
    assert endings == ["promoted"]
