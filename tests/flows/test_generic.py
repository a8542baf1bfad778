"""The generic flows on a real server: what a run says, what is left afterwards."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import Flow
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import PrefectHTTPStatusError

from model_delivery.base import NAME as NAMES
from model_delivery.base import SystemClock
from model_delivery.flows import registration
from model_delivery.flows.automations import install
from model_delivery.flows.collect import collect
from model_delivery.flows.drift import drift
from model_delivery.flows.loadtest import loadtest
from model_delivery.flows.promote import promote
from model_delivery.flows.redeploy import redeploy
from model_delivery.flows.registration import Wanted
from model_delivery.flows.rollback import rollback
from model_delivery.run.lease import Lease
from model_delivery.spec import DeliverySpec
from model_delivery.verbs.status import status
from scripts.local_prefect import PREFECT
from tests.flows.test_operations import NAME, Lab
from tests.parts import prefect_server as parts
from tests.parts.cluster.waiting import until
from tests.parts.hubs.huggingface import HuggingFaceHub
from tests.parts.ports import free_port
from tests.parts.timing_engine import TimingServer, engine_folder
from tests.parts.tiny_model import tiny_model
from tests.unit.test_cli import deliver

HUB = {"source": "huggingface", "repo": "org/model"}
SMOKE_ONLY = {"smoke": {"max_tokens": 16}, "throughput": None}
ONE_LOAD = {"profile": "smoke", "users": 2, "warmup": "0s", "duration": "300ms"}
KEY = "sesame-open-1234"
FLOWS = ("collect", "deliver", "drift", "loadtest", "redeploy", "rollback")


@dataclass
class Ended:
    """A run of a flow in this process, on the server."""

    lab: Lab
    state: State[Any]

    @property
    def said(self) -> str:
        return f"{self.state.name}: {self.state.message}"

    @property
    def page(self) -> dict[str, str]:
        """Its artifacts, by what their keys end in."""
        run = FlowRun(id=self.id, flow_id=self.id)
        found = parts.artifacts_of(self.lab.client, run)
        return {key.rpartition("-")[2]: str(one.data) for key, one in found.items()}

    @property
    def id(self) -> UUID:
        found = self.state.state_details.flow_run_id
        assert found is not None
        return found


@dataclass
class Operator:
    lab: Lab
    hub: HuggingFaceHub
    good: DeliverySpec | None = None

    def run(self, flow: Flow[..., Any], *args: Any, **more: Any) -> Ended:
        state: Any = flow(*args, return_state=True, **more)
        return Ended(self.lab, state)

    def register(self, spec: DeliverySpec) -> None:
        (proposal,) = registration.propose([spec], Wanted(parts.POOL)).proposals
        registration.register(proposal)

    def settle(self) -> None:
        """What serves is what is registered."""
        if self.good is None:
            self.serve()
        else:
            self.register(self.good)

    def serve(self, **more: Any) -> None:
        """A delivery that is registered, and delivered."""
        facts: dict[str, Any] = {"model": HUB, "gates": SMOKE_ONLY, **more}
        spec = self.lab.spec(**facts)
        self.register(spec)
        assert self.run(redeploy, NAME).said.startswith("Completed: promoted")
        self.good = spec

    def events(self, run: Ended) -> list[dict[str, Any]]:
        """What it told of drift."""
        asked = {"filter": {"event": {"name": ["model-delivery.drift.found"]}, "order": "ASC"}, "limit": 50}
        found = self.lab.client._client.post("/events/filter", json=asked).json()["events"]
        ours = f"prefect.flow-run.{run.id}"
        return [one for one in found if ours in {each["prefect.resource.id"] for each in one["related"]}]

    @property
    def standing(self) -> Mapping[Any, Any]:
        """All that a host holds of it, but for the lease's own book-keeping."""
        objects = self.lab.place.world(NAME).objects
        return {ref: (seen.resource, seen.version, seen.status.get("pid")) for ref, seen in objects.items()}


@pytest.fixture(scope="module")
def operator(
    server: parts.Server, worker: int, home: Path, hub: HuggingFaceHub, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operator]:
    assert worker
    folder = tmp_path_factory.mktemp("generic")
    with pytest.MonkeyPatch.context() as patch, parts.client_of(server) as client:
        patch.setenv("MODEL_DELIVERY_HOME", str(home))
        patch.setenv("HF_ENDPOINT", hub.url)
        parts.wait_for_pool(client)
        made = Lab(client, server, home, tiny_model(folder / "model"), engine_folder(folder), free_port())
        yield Operator(made, hub)
        deliver(home, "down", NAME)


@contextmanager
def moved(hub: HuggingFaceHub, **faults: Any) -> Iterator[None]:
    """Another state of the hub, for the length of the block."""
    before = {name: getattr(hub, name) for name in faults}
    vars(hub).update(faults)
    try:
        yield
    finally:
        vars(hub).update(before)


def test_a_redeploy_delivers_what_is_registered_only_when_it_has_changed(operator: Operator) -> None:
    operator.serve()
    serving, before = operator.lab.record.serving, operator.standing
    again = operator.run(redeploy, NAME)
    assert again.said == f"Completed: unchanged (release {serving})"
    assert operator.standing == before
    operator.register(operator.lab.spec(model=HUB, gates={"smoke": {"expect": "Rome"}, "throughput": None}))
    refused = operator.run(redeploy, NAME)
    assert "exit code 4" in refused.said
    assert "'Rome' is not in" in refused.page["trouble"]
    tried = operator.lab.record.ended[-1].release
    held = operator.run(redeploy, NAME)
    assert held.said == f"Completed: held: release {tried}; {serving} serves"
    assert held.said.removeprefix("Completed: ") in held.page["outcome"]


def test_a_redeploy_of_what_is_not_registered_says_what_to_do(operator: Operator) -> None:
    operator.settle()
    wrong = operator.run(redeploy, "operatd")
    assert "exit code 2: no delivery 'operatd' is registered: did you mean operated?" in wrong.said
    assert "deliver register FILE" in wrong.page["trouble"]


def test_a_flow_that_cannot_begin_says_why_on_its_page(operator: Operator) -> None:
    operator.settle()
    for flow, given in (
        (rollback, {"name": "nobody"}),
        (promote, {"name": "nobody", "by": "ana"}),
        (redeploy, {"name": "*"}),
    ):
        ended = operator.run(flow, **given)
        assert "exit code 2" in ended.said
        assert "deliver" in ended.page["trouble"]
        log = parts.log_of(operator.lab.client, FlowRun(id=ended.id, flow_id=ended.id))
        assert not [line for line in log if "Traceback" in line]


def test_drift_tells_what_stands_from_what_moved_upstream_and_changes_nothing(operator: Operator) -> None:
    operator.settle()
    serving, calm = operator.lab.record.serving, operator.standing
    quiet = operator.run(drift, NAME)
    assert quiet.said == "Completed: no drift"
    assert "| operated | no drift |" in quiet.page["drift"]
    with moved(operator.hub, files={**operator.hub.files, "README.md": b"newer"}):
        run = operator.run(drift)
        assert run.said == f"Completed: drift found: {NAME}"
        until(lambda: operator.events(run), 20, "no event came")
        (event,) = operator.events(run)
        facts, resource = event["payload"], event["resource"]
        assert (facts["kind"], facts["delivery"], facts["release"]) == ("upstream", NAME, serving)
        assert facts["model_now"] == operator.hub.commit != facts["model_before"]
        assert (resource["model-delivery.drift"], resource["model-delivery.pool"]) == ("upstream", parts.POOL)
    with moved(operator.hub, status=404, error_code="RepoNotFound", busy_times=-1):
        away = operator.run(drift, NAME)
        assert away.said == f"Completed: unknown: {NAME}"
        assert "| operated | unknown |" in away.page["drift"]
    assert operator.standing == calm
    os.kill(int(status(operator.lab.place, NAME).running[0].pid or 0), signal.SIGKILL)
    run = operator.run(drift, NAME)
    assert run.said == f"Completed: drift found: {NAME}"
    until(lambda: operator.events(run), 20, "no event came")
    (event,) = operator.events(run)
    assert event["payload"]["kind"] == "live"
    assert operator.events(away) == [], "upstream that does not answer has not changed"
    assert any("Engine" in line for line in event["payload"]["changes"]), event["payload"]
    assert operator.run(redeploy, NAME).said == f"Completed: healed (release {serving})"


def test_a_load_test_by_name_shows_verdict_and_picture_and_changes_nothing(operator: Operator) -> None:
    operator.settle()
    before = operator.standing
    met = operator.run(loadtest, NAME, load={**ONE_LOAD, "slo": {"error_rate_max": 0}})
    assert met.said == "Completed: passed"
    assert {"verdict", "throughput", "outcome"} <= met.page.keys()
    assert "data:image/png;base64," in met.page["throughput"]
    not_met = operator.run(loadtest, NAME, load={**ONE_LOAD, "slo": {"ttft_p95_max": "0.1ms"}})
    assert "exit code 4" in not_met.said
    assert "gate.slo" in not_met.page["trouble"] or "ttft_p95_max" in not_met.page["trouble"]
    assert operator.standing == before
    nobody = operator.run(loadtest, "nobody", load=ONE_LOAD)
    assert "exit code 2: no delivery is called nobody" in nobody.said


def test_a_load_test_of_an_address_takes_its_key_by_name_alone(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THEIR_KEY", KEY)
    with TimingServer(operator.lab.model, "--ttft", "2", environ={"VLLM_API_KEY": KEY}) as server:
        told = operator.run(loadtest, f"{server.url}/v1", load=ONE_LOAD, api_key={"env": "THEIR_KEY"})
        assert told.said == "Completed: passed"
        assert operator.lab.client.read_flow_run(told.id).parameters["api_key"] == {"env": "THEIR_KEY"}
        unnamed = operator.run(loadtest, server.url, load=ONE_LOAD)
        assert "a key is named with" in unnamed.said
        assert not any(
            "sesame" in text
            for text in (*told.page.values(), *parts.log_of(operator.lab.client, FlowRun(id=told.id, flow_id=told.id)))
        )


def test_collect_removes_what_is_due_and_leaves_a_delivery_that_a_run_is_at_work_on(operator: Operator) -> None:
    operator.settle()
    first = operator.lab.record.serving
    operator.serve(rollout={"strategy": "blue-green", "watch": "0s", "standby": "1s"})
    place = operator.lab.place
    commit = "a" * 40
    left = copied(operator, commit)
    until(lambda: (operator.lab.record.stop_after or 0) < time.time(), 5, "the standby is not over")
    before = operator.standing
    shown = operator.run(collect, dry_run=True)
    assert "would be removed" in shown.said
    for text in (f"release {first}: its standby is over", str(left)):
        assert text in shown.page["collected"]
    assert operator.standing == before
    assert left.is_dir()
    lease = Lease(place, NAME, "somebody", SystemClock())
    lease.acquire("refuse")
    with lease.kept():
        busy = operator.run(collect)
        assert f"| left alone (a run is at work) | {NAME} |" in busy.page["collected"]
        assert [one.release for one in status(place, NAME).running] != [operator.lab.record.serving]
    assert not left.exists()
    operator.run(collect)
    assert [one.release for one in status(place, NAME).running] == [operator.lab.record.serving]
    assert operator.run(collect).said == "Completed: nothing to remove"


def copied(operator: Operator, commit: str) -> Path:
    """A model's folder in the store, of a commit that no release needs."""
    (folder,) = operator.lab.home.glob("models/huggingface/*")
    now = operator.hub.commit
    shutil.copytree(folder / now, folder / commit)
    for mark in folder.glob(f".{now}.*.user"):
        shutil.copy(mark, folder / mark.name.replace(now, commit))
    return folder / commit


@pytest.fixture(scope="module")
def deployed(server: parts.Server, worker: int) -> None:
    """`prefect deploy --all`, on a server that has both pools."""
    assert worker
    with parts.client_of(server) as client:
        parts.wait_for_pool(client)
        parts.make_cluster_pool(client)
        run = partial(subprocess.run, env=dict(server.env), check=True, capture_output=True, timeout=120)
        run([PREFECT, "deploy", "-n", "on_host", "--no-prompt"])
        assert {client.read_deployment_by_name(f"{flow}/on_host").work_pool_name for flow in FLOWS} == {"local"}
        run([PREFECT, "deploy", "--all", "--no-prompt"])


@pytest.mark.usefixtures("deployed")
def test_prefect_deploy_all_makes_every_flow_for_both_pools(operator: Operator) -> None:
    client, made = operator.lab.client, dict[str, Any]()
    for flow in FLOWS:
        for where, pool in (("on_host", "local"), ("on_cluster", "cluster")):
            made[f"{flow}/{where}"] = one = client.read_deployment_by_name(f"{flow}/{where}")
            assert (one.work_pool_name, one.enforce_parameter_schema, one.pull_steps) == (pool, True, [])
            assert one.description
            assert not re.fullmatch(NAMES, one.name), "a service could be called so"
    nightly = client.read_deployment_by_name("redeploy/nightly_on_host")
    assert [schedule.active for schedule in nightly.schedules] == [False]
    for flow, wrong in (
        ("loadtest", {"service": "x", "api_key": "sk-plain"}),
        ("loadtest", {"service": "http://me:s3cret@host"}),
        ("drift", {"name": 5}),
        ("redeploy", {}),
    ):
        with pytest.raises(PrefectHTTPStatusError) as refused:
            client.create_flow_run_from_deployment(made[f"{flow}/on_host"].id, parameters=wrong)
        assert refused.value.response.status_code == 409


@pytest.mark.usefixtures("deployed")
def test_a_cancelled_redeploy_leaves_nothing_on_its_way_even_where_its_delivery_is_registered_no_more(
    operator: Operator,
) -> None:
    operator.settle()
    client, serving = operator.lab.client, operator.lab.record.serving
    operator.register(operator.lab.spec("300s", model=HUB))
    made = client.read_deployment_by_name("redeploy/on_host")
    run = client.create_flow_run_from_deployment(made.id, parameters={"name": NAME})
    until(operator.lab.loading, 90, "the load test does not begin")
    registration.remove(NAME)
    command = [PREFECT, "flow-run", "cancel", str(run.id)]
    subprocess.run(command, env=dict(operator.lab.server.env), check=True, capture_output=True, timeout=120)
    parts.wait_for(client, run)
    until(lambda: operator.lab.record.candidate is None, 60, "its release is still on its way")
    assert operator.lab.record.ended[-1].outcome == "cancelled"
    assert [one.release for one in status(operator.lab.place, NAME).running] == [serving]


@pytest.mark.usefixtures("deployed")
def test_upstream_drift_that_a_worker_finds_is_redeployed_by_the_automation(operator: Operator) -> None:
    client, name = operator.lab.client, "model-delivery: redeploy on upstream drift (pool local)"
    first, again = ({each.name: each.action for each in install()} for _ in range(2))
    assert (first[name] in ("new", "unchanged"), again[name]) == (True, "unchanged")
    (one,) = client.read_automations_by_name(name)
    assert not one.enabled, "what delivers by itself is a person's choice"
    operator.settle()
    client.resume_automation(one.id)
    try:
        with moved(operator.hub, files={**operator.hub.files, "README.md": b"newest"}):
            check = client.read_deployment_by_name("drift/on_host")
            run = parts.wait_for(client, client.create_flow_run_from_deployment(check.id))
            assert run.state is not None
            assert run.state.message == f"drift found: {NAME}"
            until(lambda: redeployed(operator), 90, "the automation redeploys nothing")
            assert operator.lab.record.ended[-1].outcome == "promoted"
            assert operator.lab.record.ended[-1].commit == operator.hub.commit
    finally:
        client.pause_automation(one.id)


def redeployed(operator: Operator) -> bool:
    client = operator.lab.client
    made = client.read_deployment_by_name("redeploy/on_host")
    ours = FlowRunFilter.model_validate({"deployment_id": {"any_": [made.id]}})
    runs = client.read_flow_runs(flow_run_filter=ours)
    return any(run.state is not None and run.state.is_completed() for run in runs)
