"""Follows a flow run from outside: its steps as they end, its log lines as they come."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    LogFilter,
    LogFilterFlowRunId,
    TaskRunFilter,
)
from prefect.client.schemas.objects import State
from prefect.client.schemas.sorting import LogSort, TaskRunSort

ROUTINE = (
    "Finished in state",
    "Beginning flow run",
    "Created ",
    "Worker ",
    "Opening process",
    "Completed submission",
    "Process for flow run",
    "Downloading flow code",
)
WORTH_A_LINE = 0.05
LOGS_COME = timedelta(seconds=3)  # Prefect sends a run's log every 2 s: what is younger is not in order yet


def wait_for_pool(client: SyncPrefectClient, pool: str, alive: Callable[[], bool], timeout: float = 90.0) -> None:
    """Return when the worker has made its pool; RuntimeError when it ended (``alive``
    says no) or ``timeout`` seconds are over.
    """
    deadline = time.monotonic() + timeout
    while alive() and time.monotonic() < deadline:
        if any(found.name == pool for found in client.read_work_pools()):
            return
        time.sleep(0.3)
    raise RuntimeError(f"the worker did not make its pool {pool}: see worker.log beside server.log")


def follow(client: SyncPrefectClient, run: UUID, say: Callable[[str], None], alive: Callable[[], bool]) -> State:
    """Say what happens until the run has ended; returns its final state.

    RuntimeError when its worker ended first.
    """
    lines, ended, state_said, news = 0, set[UUID](), "", list[tuple[datetime, str]]()
    while True:
        flow_run = client.read_flow_run(run)
        state = flow_run.state
        if state is not None and state.name != state_said:
            state_said = state.name or ""
            news.append((state.timestamp, f"the run is {state_said}"))
        logs = client.read_logs(
            LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run])), sort=LogSort.TIMESTAMP_ASC, offset=lines, limit=200
        )
        lines += len(logs)
        news += [
            (log.timestamp, f"  {log.message.splitlines()[0]}")
            for log in logs
            if log.level >= 20 and not log.message.startswith(ROUTINE)
        ]
        tasks = client.read_task_runs(
            task_run_filter=TaskRunFilter.model_validate({"flow_run_id": {"any_": [run]}}),
            sort=TaskRunSort.END_TIME_DESC,
        )
        for task in tasks:
            seconds = task.total_run_time.total_seconds()
            if task.state is not None and task.state.is_final() and task.id not in ended:
                ended.add(task.id)
                if seconds >= WORTH_A_LINE or not task.state.is_completed():
                    news.append((task.state.timestamp, f"  step {task.name}: {task.state.name} after {seconds:.1f} s"))
        over = state is not None and state.is_final() and not logs
        until = datetime.max.replace(tzinfo=UTC) if over else datetime.now(UTC) - LOGS_COME
        for _, line in sorted(one for one in news if one[0] <= until):
            say(line)
        news = [one for one in news if one[0] > until]
        if over and state is not None:
            return state
        if not alive():
            raise RuntimeError("the worker ended before the run did: see worker.log beside server.log")
        time.sleep(1)


def last_verdict(client: SyncPrefectClient, run: UUID) -> str | None:
    """The verdict table that the run published, as Markdown."""
    found = client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run])))
    tables = [artifact for artifact in found if (artifact.key or "").endswith("-verdict")]
    return str(max(tables, key=lambda artifact: str(artifact.created)).data) if tables else None
