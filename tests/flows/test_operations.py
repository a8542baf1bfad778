"""Deliveries by a real worker, as operators meet them: the page, a cancel, a kill."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, LogFilter, LogFilterFlowRunId, TaskRunFilter
from prefect.client.schemas.objects import FlowRun, TaskRun

from model_delivery.flows import registration
from model_delivery.flows.registration import Wanted
from model_delivery.places.host.place import Host
from model_delivery.run.record import Record
from model_delivery.run.restore import read
from model_delivery.spec import DeliverySpec, parse_spec
from model_delivery.verbs.status import status
from scripts.local_prefect import PREFECT
from tests.parts import prefect_server as parts
from tests.parts.cluster.waiting import until
from tests.parts.ports import free_port
from tests.parts.timing_engine import engine_folder
from tests.parts.tiny_model import tiny_model
from tests.unit.test_cli import deliver

NAME = "operated"
CANCEL_SECONDS = 30.0
STEPS = [
    *("resolve", "plan", "storage", "fetch"),
    *("release (dark)", "ready (dark)", "smoke (dark)", "throughput (dark)", "verdict (dark)"),
    *("release (promote)", "ready (promote)", "watch (promote)", "promote", "collect"),
]


@dataclass
class Lab:
    client: SyncPrefectClient
    server: parts.Server
    home: Path
    model: Path
    engine: Path
    port: int
    labels: int = 0

    def spec(self, duration: str = "300ms", *args: str, **more: Any) -> DeliverySpec:
        self.labels += 1
        load = {"profile": "smoke", "users": 2, "warmup": "0s", "duration": duration, "slo": {"error_rate_max": 0}}
        return parse_spec(
            {
                "apiVersion": "model-delivery/v1",
                "name": NAME,
                "model": {"source": "local", "path": str(self.model)},
                "serving": {"args": ["--label", f"r{self.labels}", "--ttft", "2", "--itl", "1", *args]},
                "target": {"kind": "process", "engine": str(self.engine), "port": self.port},
                "gates": {"smoke": {"max_tokens": 16}, "throughput": load},
                "rollout": {"strategy": "blue-green", "watch": "0s", "standby": "0s"},
            }
            | more
        )

    def begin(self, spec: DeliverySpec) -> FlowRun:
        """As `deliver register` and `prefect deployment run` do."""
        (proposal,) = registration.propose([spec], Wanted(parts.POOL)).proposals
        registration.register(proposal)
        made = self.client.read_deployment_by_name(f"deliver/{spec.name}")
        return self.client.create_flow_run_from_deployment(made.id)

    def ended(self, spec: DeliverySpec) -> FlowRun:
        return parts.wait_for(self.client, self.begin(spec))

    def tasks(self, run: FlowRun) -> list[TaskRun]:
        found = self.client.read_task_runs(
            task_run_filter=TaskRunFilter.model_validate({"flow_run_id": {"any_": [run.id]}})
        )
        return sorted(found, key=lambda task: task.start_time or datetime.max.replace(tzinfo=UTC))

    @property
    def place(self) -> Host:
        return Host(self.home)

    @property
    def record(self) -> Record:
        return read(self.place, NAME).record

    def loading(self, name: str = NAME) -> bool:
        return bool(list(self.home.glob(f"deliveries/{name}/objects/Step/load-*.json")))


@pytest.fixture
def lab(server: parts.Server, worker: int, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    assert worker
    folder = tmp_path_factory.mktemp("operated")
    with parts.client_of(server) as client:
        parts.wait_for_pool(client)
        made = Lab(client, server, home, tiny_model(folder / "model"), engine_folder(folder), free_port())
        try:
            yield made
        finally:
            deliver(home, "down", NAME)


def inputs(task: TaskRun) -> Mapping[str, Any]:
    return {name: [str(getattr(one, "id", "")) for one in given] for name, given in task.task_inputs.items() if given}


def test_the_page_has_the_steps_in_the_order_of_the_dag_and_what_came_of_it(lab: Lab) -> None:
    run = lab.ended(lab.spec())
    assert run.state is not None
    assert run.state.name == "Completed", run.state
    tasks = lab.tasks(run)
    assert [task.name for task in tasks] == STEPS
    assert [inputs(task) for task in tasks] == [{}, *({"wait_for": [str(task.id)]} for task in tasks[:-1])]
    shown = parts.artifacts_of(lab.client, run)
    outcome = str(shown[f"{NAME}-outcome"].data)
    assert f"http://127.0.0.1:{lab.port}/v1" in outcome
    assert "promoted" in outcome
    assert str(lab.record.ended[-1].report) in outcome


def test_a_scheduled_run_that_finds_nothing_to_do_says_so(lab: Lab) -> None:
    spec = lab.spec()
    lab.ended(spec)
    before = lab.place.world(NAME).objects
    again = lab.ended(spec)
    assert again.state is not None
    assert (again.state.name, again.state.message) == ("Completed", f"unchanged (release {lab.record.serving})")
    assert [task.name for task in lab.tasks(again)] == ["resolve", "plan", "answers"]
    assert lab.place.world(NAME).objects.keys() == before.keys()


def test_the_server_makes_the_runs_of_a_schedule(lab: Lab) -> None:
    lab.client.delete_flow_run(lab.begin(lab.spec(schedule={"cron": "0 3 * * *", "timezone": "UTC"})).id)
    made = lab.client.read_deployment_by_name(f"deliver/{NAME}").id
    ours = FlowRunFilter.model_validate({"deployment_id": {"any_": [made]}})

    def due() -> list[FlowRun]:
        return [run for run in lab.client.read_flow_runs(flow_run_filter=ours) if run.auto_scheduled]

    (first, *_) = until(due, 90, "no run is scheduled")
    assert first.parameters["scheduled"] is True


def test_a_refusal_shows_code_remedy_and_what_to_type_and_no_traceback(lab: Lab) -> None:
    lab.ended(lab.spec())
    refused = lab.ended(lab.spec(gates={"smoke": {"expect": "Rome"}, "throughput": None}))
    assert refused.state is not None
    assert refused.state.name == "Failed"
    said = str(parts.artifacts_of(lab.client, refused)[f"{NAME}-trouble"].data)
    assert "exit code 4" in said
    assert "`gate.refused`" in said
    assert "'Rome' is not in" in said
    assert f"deliver history {NAME} --reports DIR" in said
    logs = lab.client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[refused.id])))
    assert not [log.message for log in logs if "Traceback" in log.message]
    assert [log.message for log in logs if "'Rome' is not in" in log.message]


def test_a_cancel_ends_the_load_and_the_dark_release_and_what_serves_stays(lab: Lab) -> None:
    lab.ended(lab.spec())
    serving = lab.record.serving
    run = lab.begin(lab.spec("120s"))
    until(lab.loading, 90, "the load test does not begin")
    command = [PREFECT, "flow-run", "cancel", str(run.id)]
    subprocess.run(command, env=dict(lab.server.env), check=True, capture_output=True, timeout=120)
    gone = parts.wait_for(lab.client, run)
    states = {state.type.value: state.timestamp for state in lab.client.read_flow_run_states(run.id)}
    assert gone.state is not None
    assert gone.state.name == "Cancelled"
    until(lambda: lab.record.candidate is None, 60, "the dark release is still there")
    ended = lab.record.ended[-1]
    assert ended.outcome == "cancelled"
    assert ended.at - states["CANCELLING"].timestamp() < CANCEL_SECONDS
    assert not lab.loading()
    told = f"cancelled: release {ended.release} is withdrawn; {serving} serves"
    assert f"{NAME}: {told}" in parts.log_of(lab.client, run, f"{NAME}: {told}")
    page = until(lambda: parts.artifacts_of(lab.client, run).get(f"{NAME}-outcome"), 30, "it has no outcome")
    assert told in str(page.data)
    now = status(lab.place, NAME)
    assert (now.state, now.serving, [one.release for one in now.running]) == ("up", serving, [serving])


def test_a_run_that_is_killed_is_crashed_and_the_next_one_ends_its_work(lab: Lab) -> None:
    run = lab.begin(lab.spec("120s"))
    until(lab.loading, 90, "the load test does not begin")
    os.kill(process_of(run).pid, signal.SIGKILL)
    gone = parts.wait_for(lab.client, run, 60)
    assert gone.state is not None
    assert gone.state.name == "Crashed"
    again = lab.ended(lab.spec())
    assert again.state is not None
    assert again.state.name == "Completed", again.state
    outcomes = [ended.outcome for ended in lab.record.ended]
    assert outcomes[-2:] == ["replaced", "promoted"]
    assert [one.release for one in status(lab.place, NAME).running] == [lab.record.serving]


def process_of(run: FlowRun) -> psutil.Process:
    """The run's own: its steps inherit its environment."""
    found = {process.pid: process for process in psutil.process_iter() if run_of(process) == str(run.id)}
    (first,) = [process for process in found.values() if process.ppid() not in found and process.ppid() != 1]
    return first


def run_of(process: psutil.Process) -> str | None:
    """The flow run that a process is."""
    try:
        return process.environ().get("PREFECT__FLOW_RUN_ID")
    except psutil.Error:
        return None
