"""Prefect's Kubernetes worker on a real node, with the shipped template, accounts and
Role alone: a deployment's run is a Job of the project's image, which delivers.
"""

from __future__ import annotations

import json
import secrets
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
from prefect.flow_runs import resume_flow_run

from model_delivery.flows import registration
from model_delivery.flows.registration import Wanted
from model_delivery.spec import load_spec
from scripts.local_prefect import PREFECT
from tests.cluster.node.lab import NAME, Lab, running_lab
from tests.parts import prefect_server as parts
from tests.parts.cluster import images
from tests.parts.cluster.node import ADDRESS, Node
from tests.parts.cluster.waiting import until
from tests.parts.marks import holds
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

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Of Prefect's, as a user types it."""
        env = dict(self.server.env)
        return subprocess.run([PREFECT, *words], env=env, check=False, capture_output=True, text=True, timeout=300)

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

    def state(self, run: FlowRun) -> str:
        now = self.client.read_flow_run(run.id).state
        return now.name or "" if now else ""

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
    run = ("deployment", "run", f"deliver/{NAME}", "--watch")
    operated.registered("first")
    promoted = operated.command(*run)
    serving = operated.lab.record.serving
    assert (promoted.returncode, bool(serving)) == (0, True), promoted.stdout + promoted.stderr
    operated.registered("refused", gates={"smoke": {"expect": "Rome"}, "throughput": None})
    refused = operated.command(*run)
    assert refused.returncode not in (0, 2), refused.stdout + refused.stderr
    last = operated.lab.record.ended[-1]
    assert (last.outcome, last.exit_code, operated.lab.record.serving) == ("gate failed", 4, serving)


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
    assert operated.command("flow-run", "cancel", str(run.id)).returncode == 0
    operated.ended(run, "Cancelled", "")
    states = {state.type.value: state.timestamp for state in operated.client.read_flow_run_states(run.id)}
    until(lambda: operated.lab.record.candidate is None, 90, "the dark release is still there", pause=1)
    ended = operated.lab.record.ended[-1]
    assert ended.outcome == "cancelled"
    assert ended.at - states["CANCELLING"].timestamp() < CANCEL_SECONDS
    until(lambda: not [job for job in jobs(operated) if "-load-" in job], 60, "the load test is still there")
    assert operated.lab.record.serving == serving


def test_a_person_approves_and_no_pod_waits_for_them(operated: Operated) -> None:
    operated.ended(operated.begin("before-asking"), "Completed", "")
    serving, run = operated.lab.record.serving, operated.begin("asked", approval="manual")
    until(lambda: operated.state(run) == "Suspended", 180, lambda: f"it does not wait: {operated.state(run)}", pause=1)
    done = {"Succeeded", "Failed"}
    until(lambda: {pod["status"]["phase"] for pod in operated.pods(run)} <= done, 60, "a pod of it waits", pause=1)
    assert operated.lab.record.serving == serving
    with parts.settings_of(operated.server):
        resume_flow_run(run.id, run_input={"decision": "promote", "by": "ana", "reason": "fast enough"})
    operated.ended(run, "Completed", "promoted")
    last = operated.lab.record.ended[-1]
    assert (last.release, last.why()) == (operated.lab.record.serving, "approved by ana: fast enough")
    assert last.release != serving


def test_the_generic_flows_run_in_the_pool(operated: Operated) -> None:
    operated.ended(operated.begin("older"), "Completed", "")
    operated.ended(operated.begin("newer"), "Completed", "")
    deployed = operated.command("deploy", "-n", "on_cluster", "--no-prompt")
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    where = {"namespace": operated.lab.namespace}
    load = {"profile": "smoke", "users": 1, "warmup": "0s", "duration": "2s", "slo": {"error_rate_max": 0}}
    given: dict[str, tuple[dict[str, Any], str]] = {
        "redeploy": ({"name": NAME}, "unchanged"),
        "drift": ({"name": NAME}, "no drift"),
        "loadtest": ({"service": NAME, "where": where, "load": load}, "passed"),
        "collect": ({"where": where, "dry_run": True}, "remove"),
    }
    before, runs = operated.lab.record, dict[str, FlowRun]()
    for flow, (parameters, _) in given.items():
        made = operated.client.read_deployment_by_name(f"{flow}/on_cluster")
        runs[flow] = operated.client.create_flow_run_from_deployment(made.id, parameters=parameters)
    for flow, (_, said) in given.items():
        operated.ended(runs[flow], "Completed", said)
    assert operated.lab.record == before
    back = operated.client.read_deployment_by_name("rollback/on_cluster")
    asked = operated.client.create_flow_run_from_deployment(back.id, parameters={"name": NAME, "where": where})
    operated.ended(asked, "Completed", "rolled back to")
    assert operated.lab.record.serving == before.previous


def test_no_secret_is_left_anywhere_but_in_its_secret(operated: Operated) -> None:
    lab, marks = operated.lab, {place: secrets.token_hex(12) for place in ("token", "key")}
    plain = f"label-{secrets.token_hex(4)}"
    meta = {"name": "marked", "namespace": lab.namespace}
    lab.node.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": marks})
    marked = {place: {"kube": {"name": "marked", "key": place}} for place in marks}
    model = {"token": marked["token"]}
    lab.hub.token = marks["token"]
    try:
        for expect, state in (("Paris", "Completed"), ("Rome", "Failed")):
            serving = {"args": ["--label", f"{plain}-{expect}"], "api_key": marked["key"]}
            gates = {"smoke": {"expect": expect}, "throughput": None}
            file = lab.spec(lab.images["engine"], serving=serving, model=model, gates=gates)
            (proposal,) = registration.propose([load_spec(file)], Wanted(POOL)).proposals
            registration.register(proposal)
            made = operated.client.read_deployment_by_name(f"deliver/{NAME}")
            operated.ended(operated.client.create_flow_run_from_deployment(made.id), state, "")
    finally:
        lab.hub.token = ""
    found = {str(file): file.read_bytes() for file in operated.server.home.rglob("*") if file.is_file()}
    kinds = lab.node.kubectl("api-resources", "--namespaced", "--verbs=list", "-o", "name").split()
    for kind in {*kinds} - {"secrets"}:
        found[kind] = lab.node.kubectl("get", kind, "-n", lab.namespace, "-o", "json").encode()
    for pod in lab.there("pods"):
        name = pod["metadata"]["name"]
        found[f"log of {name}"] = lab.node.kubectl("logs", name, "-n", lab.namespace, "--all-containers").encode()
    seen = {where for where, content in found.items() if plain.encode() in content}
    assert {"configmaps", "deployments.apps", "pods"} <= seen, "a search that does not find this sees nothing"
    assert [where for where in seen if "prefect.db" in where]
    for place, mark in marks.items():
        assert not [where for where, content in found.items() if holds(content, mark)], place


def jobs(operated: Operated) -> list[str]:
    return [job["metadata"]["name"] for job in operated.lab.there("jobs", "model-delivery/role=step")]
