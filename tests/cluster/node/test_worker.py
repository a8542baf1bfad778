"""Prefect's Kubernetes worker on a real node, with the shipped template, accounts and
Role alone: a deployment's run is a Job of the project's image, which delivers.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun

from model_delivery.flows import registration
from model_delivery.flows.registration import Wanted
from model_delivery.spec import load_spec
from scripts.local_prefect import PREFECT
from tests.cluster.node.lab import NAME, Lab, running_lab
from tests.parts import prefect_server as parts
from tests.parts.cluster import images
from tests.parts.cluster.node import ADDRESS, Node
from tests.parts.cluster.waiting import until
from tests.parts.tiny_model import tiny_model

pytestmark = pytest.mark.timeout(900)
MANIFESTS = Path(__file__).parents[3] / "manifests"
CANCEL_SECONDS = 60.0
POOL, CA = "cluster", "/etc/authority/ca.pem"


@dataclass
class Operated:
    """A lab with a Prefect server and a worker in its namespace."""

    lab: Lab
    client: SyncPrefectClient
    server: parts.Server

    def begin(self, label: str, *args: str, **more: Any) -> FlowRun:
        return self.client.create_flow_run_from_deployment(self.registered(label, *args, **more))

    def registered(self, label: str, *args: str, **more: Any) -> UUID:
        serving = {"args": ["--label", label, *args]}
        spec = load_spec(self.lab.spec(self.lab.images["engine"], serving=serving, **more))
        (proposal,) = registration.propose([spec], Wanted(POOL)).proposals
        registration.register(proposal)
        return self.client.read_deployment_by_name(f"deliver/{NAME}").id

    def fired(self, label: str) -> FlowRun:
        """The run that a schedule of every minute makes; the schedule is gone again."""
        made = self.registered(label, schedule={"cron": "* * * * *", "timezone": "UTC"})
        ours = FlowRunFilter.model_validate({"deployment_id": {"any_": [made]}})

        def begun() -> FlowRun | None:
            runs = [run for run in self.client.read_flow_runs(flow_run_filter=ours) if run.auto_scheduled]
            return next((run for run in runs if run.state and run.state.is_running()), None)

        found = until(begun, 150, "the schedule does not fire", pause=1)
        self.registered(label)
        return found

    def ended(self, run: FlowRun, state: str, message: str) -> None:
        gone = parts.wait_for(self.client, run, 240)
        assert gone.state is not None
        assert (gone.state.name, message in str(gone.state.message)) == (state, True), gone.state

    def pods(self, run: FlowRun) -> list[dict[str, Any]]:
        return self.lab.there("pods", f"prefect.io/flow-run-id={run.id}")


@contextmanager
def operating(node: Node, folder: Path, model: Path, engine: str) -> Iterator[Operated]:
    pushed = {"runner": images.push_project(node.registry), "engine": engine}
    with (
        running_lab(node, folder, model, pushed) as lab,
        parts.running_server(folder / "prefect", ADDRESS) as server,
        parts.client_of(server) as client,
    ):
        install(lab, server)
        client.create_work_pool(WorkPoolCreate(name=POOL, type="kubernetes", base_job_template=template(lab)))
        node.kubectl("rollout", "status", "deployment/prefect-worker", "-n", lab.namespace, "--timeout=180s")
        yield Operated(lab, client, server)


@pytest.fixture(scope="module")
def operated(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operated]:
    folder = tmp_path_factory.mktemp("worker")
    with operating(node, folder, tiny_model(folder / "model"), images.push_timing_engine(node.registry)) as made:
        yield made


def install(lab: Lab, server: parts.Server) -> None:
    """As an administrator does: the shipped folder with an overlay of one's own, and the
    Role for deliveries.
    """
    folder = lab.folder / "overlay"
    shutil.copytree(MANIFESTS / "prefect/worker", folder / "worker")
    shutil.copy(MANIFESTS / "rbac/role.yaml", folder)
    image, _, tag = lab.images["runner"].partition("@")
    setting = {"name": "PREFECT_API_URL", "value": server.url}
    pod = {"imagePullSecrets": [{"name": "pull"}], "containers": [{"name": "worker", "env": [setting]}]}
    patch = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "prefect-worker"}}
    overlay = {
        "resources": ["worker", "role.yaml"],
        "namespace": lab.namespace,
        "images": [{"name": "registry.example/model-delivery", "newName": image, "digest": tag}],
        "patches": [{"patch": yaml.safe_dump(patch | {"spec": {"template": {"spec": pod}}})}],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    lab.node.kubectl("apply", "-k", str(folder))
    authority = {"ca.pem": lab.node.authority.ca.read_text()}
    meta = {"name": "authority", "namespace": lab.namespace}
    lab.node.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": authority})


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


def test_a_deployments_run_delivers_and_a_gate_refuses_the_next(operated: Operated) -> None:
    operated.ended(operated.begin("first"), "Completed", "promoted")
    serving = operated.lab.record.serving
    assert serving
    refused = operated.begin("refused", gates={"smoke": {"expect": "Rome"}, "throughput": None})
    operated.ended(refused, "Failed", "exit code 4")
    assert operated.lab.record.serving == serving


def test_a_schedule_finds_nothing_to_do_until_the_branch_moves(operated: Operated) -> None:
    operated.ended(operated.begin("scheduled"), "Completed", "")
    first = operated.lab.record.serving
    operated.ended(operated.fired("scheduled"), "Completed", f"unchanged (release {first})")
    operated.lab.hub.files["generation_config.json"] = b'{"temperature": 0.5}'
    operated.ended(operated.fired("scheduled"), "Completed", "promoted")
    last = operated.lab.record.ended[-1]
    assert (last.outcome, last.commit) == ("promoted", operated.lab.hub.commit)
    assert operated.lab.record.serving == last.release != first


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


def test_a_cancel_takes_the_dark_release_and_its_load_test_away(operated: Operated) -> None:
    operated.ended(operated.begin("kept"), "Completed", "")
    serving = operated.lab.record.serving
    load = {"profile": "smoke", "users": 1, "warmup": "0s", "duration": "300s", "slo": {"error_rate_max": 0}}
    run = operated.begin("cancelled", gates={"smoke": {"max_tokens": 16}, "throughput": load})
    until(lambda: [job for job in jobs(operated) if "-load-" in job], 120, "no load test is at work", pause=1)
    command = [PREFECT, "flow-run", "cancel", str(run.id)]
    subprocess.run(command, env=dict(operated.server.env), check=True, capture_output=True, timeout=120)
    operated.ended(run, "Cancelled", "")
    states = {state.type.value: state.timestamp for state in operated.client.read_flow_run_states(run.id)}
    until(lambda: operated.lab.record.candidate is None, 90, "the dark release is still there", pause=1)
    ended = operated.lab.record.ended[-1]
    assert ended.outcome == "cancelled"
    assert ended.at - states["CANCELLING"].timestamp() < CANCEL_SECONDS
    until(lambda: not [job for job in jobs(operated) if "-load-" in job], 60, "the load test is still there")
    assert operated.lab.record.serving == serving


def jobs(operated: Operated) -> list[str]:
    return [job["metadata"]["name"] for job in operated.lab.there("jobs", "model-delivery/role=step")]
