"""Real parts for the flows' tests: a Prefect server, a worker, and runs on them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    LogFilter,
    LogFilterFlowRunId,
    TaskRunFilter,
)
from prefect.client.schemas.objects import Artifact, FlowRun, TaskRun
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, PREFECT_HOME, temporary_settings
from prefect.utilities.callables import parameter_schema

from scripts.local_prefect import (
    AUTH,
    POOL,
    Server,
    running_server,
    running_worker,
    start_server,
    stop,
    wait_for_server,
)

__all__ = [
    "AUTH",
    "POOL",
    "Mortal",
    "Server",
    "artifacts_of",
    "client_of",
    "deploy",
    "log_of",
    "running_server",
    "running_worker",
    "settings_of",
    "tasks_of",
    "wait_for",
    "wait_for_pool",
]


@dataclass
class Mortal:
    """A server that a test may kill, and start again where it was."""

    settings: dict[str, str]
    process: psutil.Popen
    server: Server

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def start_again(self) -> None:
        port = urlsplit(self.server.url).port or 0
        self.process, _ = start_server(self.server.home, port=port, settings=self.settings)
        wait_for_server(self.process, self.server)


@contextmanager
def running_mortal(home: Path, settings: dict[str, str]) -> Iterator[Mortal]:
    """For the length of the block."""
    mortal = Mortal(settings, *start_server(home, settings=settings))
    try:
        wait_for_server(mortal.process, mortal.server)
        yield mortal
    finally:
        stop(mortal.process)


@contextmanager
def settings_of(server: Server | None, url: str | None = None) -> Iterator[None]:
    """Prefect in this process talks to ``server`` (or to whatever is at ``url``; with
    neither, to none).
    """
    where = url if server is None else server.url
    updates: dict[Any, Any] = {PREFECT_API_URL: where} if where else {}
    if server is not None:
        updates |= {PREFECT_HOME: server.home, PREFECT_API_AUTH_STRING: server.env.get("PREFECT_API_AUTH_STRING")}
    with temporary_settings(
        updates=updates,
        restore_defaults=set() if where else {PREFECT_API_URL},
    ):
        yield


@contextmanager
def client_of(server: Server) -> Iterator[SyncPrefectClient]:
    with settings_of(server), get_client(sync_client=True) as client:
        yield client


def deploy(
    client: SyncPrefectClient, flow: Flow[..., Any], name: str, entrypoint: str, pool: str = POOL, **variables: Any
) -> Any:
    """Register ``flow`` (importable by the worker as ``entrypoint``) as a deployment;
    returns its id.
    """
    return client.create_deployment(
        flow_id=client.create_flow(flow),
        name=name,
        work_pool_name=pool,
        entrypoint=entrypoint,
        pull_steps=[],
        parameter_openapi_schema=parameter_schema(flow).model_dump_for_openapi(),
        job_variables=variables,
    )


def make_cluster_pool(client: SyncPrefectClient) -> None:
    """The other pool of prefect.yaml, by the template that is shipped for it."""
    template = json.loads(Path("manifests/prefect/kubernetes-pool.json").read_text())
    client.create_work_pool(WorkPoolCreate(name="cluster", type="kubernetes", base_job_template=template))


def wait_for(client: SyncPrefectClient, run: FlowRun, timeout: float = 120.0) -> FlowRun:
    """The run, once it is in a final state."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        now = client.read_flow_run(run.id)
        if now.state is not None and now.state.is_final():
            return now
        time.sleep(0.3)
    raise TimeoutError(f"run {run.id} is still {client.read_flow_run(run.id).state}")


def artifacts_of(client: SyncPrefectClient, run: FlowRun) -> dict[str, Artifact]:
    """By key; Prefect's own, which have none, are left out."""
    found = client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id])))
    return {str(artifact.key): artifact for artifact in found if artifact.key}


def log_of(client: SyncPrefectClient, run: FlowRun, until: str = "", timeout: float = 30.0) -> list[str]:
    """The run's log, once it has a line that is ``until``: Prefect sends the last lines
    after the run's last state.
    """
    deadline = time.monotonic() + timeout
    while True:
        found = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])))
        lines = [log.message for log in found]
        if not until or until in lines or time.monotonic() > deadline:
            return lines
        time.sleep(0.2)


def tasks_of(client: SyncPrefectClient, run: FlowRun) -> dict[str, TaskRun]:
    """By the task run's name."""
    found = client.read_task_runs(task_run_filter=TaskRunFilter.model_validate({"flow_run_id": {"any_": [run.id]}}))
    return {task.name: task for task in found}


def wait_for_pool(client: SyncPrefectClient, timeout: float = 60.0, name: str = POOL) -> None:
    """Return when the worker has made its pool."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if name in {pool.name for pool in client.read_work_pools()}:
            return
        time.sleep(0.2)
    raise TimeoutError(f"no work pool {name}: the worker did not start")
