"""What a run shows and how it behaves, on a real server, by a real worker."""

from __future__ import annotations

import logging
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun

from model_delivery.base import Finding, Permanent, Secret
from model_delivery.tasks import artifacts
from tests.flows import trial
from tests.parts import browser
from tests.parts import prefect_server as parts


@dataclass(frozen=True)
class Ran:
    client: SyncPrefectClient
    run: FlowRun
    folder: Path


@pytest.fixture(scope="module")
def ran(server: parts.Server, worker: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """The trial flow, run once by the worker from a deployment."""
    assert worker
    folder = tmp_path_factory.mktemp("trial")
    with parts.client_of(server) as client:
        parts.wait_for_pool(client)
        deployment = parts.deploy(client, trial.trial, "here", "tests.flows.trial.trial")
        run = client.create_flow_run_from_deployment(deployment, parameters={"folder": str(folder)})
        yield Ran(client, parts.wait_for(client, run), folder)


def test_the_run_fails_with_the_exit_code_the_figure_and_the_bound_in_its_message(ran: Ran) -> None:
    assert ran.run.state is not None
    assert ran.run.state.name == "Failed", ran.run.state
    assert "exit code 4: ttft p95 was 812 ms, its bound is 500 ms" in str(ran.run.state.message)


def test_a_task_sees_the_context_and_the_id_of_its_run(ran: Ran) -> None:
    seen, in_task, in_flow, _ = (ran.folder / "seen").read_text().splitlines()
    assert seen == "what the flow set"
    assert in_task == in_flow == str(ran.run.id)


def test_only_a_retryable_finding_is_tried_again(ran: Ran) -> None:
    assert (ran.folder / "stubborn").read_text() == "2"
    assert (ran.folder / "hopeless").read_text() == "1"
    tasks = parts.tasks_of(ran.client, ran.run)
    assert {name: (task.state_name, task.run_count) for name, task in tasks.items()} == {
        "look": ("Completed", 1),
        "stubborn": ("Completed", 2),
        "broken": ("Failed", 1),
        "hopeless": ("Failed", 1),
    }


def test_no_task_stores_what_it_was_given(ran: Ran) -> None:
    log = parts.log_of(ran.client, ran.run)
    stored = [task.model_dump_json() for task in parts.tasks_of(ran.client, ran.run).values()]
    assert not [text for text in (*stored, *log) if "parameter-of-a-task" in text]


def test_a_fault_of_ours_is_told_without_the_secret_that_it_quotes(ran: Ran) -> None:
    tasks, log = parts.tasks_of(ran.client, ran.run), parts.log_of(ran.client, ran.run)
    assert "LookupError: wrong key *** [release.broke]" in str(tasks["broken"].state)
    told = [task.model_dump_json() for task in tasks.values()]
    assert not [text for text in (*told, *log) if trial.KEY in text]


def test_a_log_has_a_traceback_of_a_fault_of_ours_alone_and_no_secret() -> None:
    def logged(trouble: Permanent) -> str:
        try:
            try:
                raise LookupError(f"wrong key {Secret(trial.KEY).reveal()}")
            except LookupError as error:
                raise trouble from error
        except Permanent:
            record = logging.LogRecord("run", logging.ERROR, "", 1, "broke: %s", (trial.KEY,), sys.exc_info())
        assert artifacts._in_words(record)
        return logging.Formatter().format(record)

    ours, foreseen = (logged(Permanent(Finding(code, "it broke"))) for code in ("release.broke", "source.refused"))
    assert ours.startswith("broke: ***\nTraceback")
    assert "LookupError: wrong key ***" in ours
    assert trial.KEY not in ours
    assert foreseen == "exit code 1: it broke [source.refused]"


def test_progress_is_in_the_log_and_its_last_line_too(ran: Ran) -> None:
    first, last = "look: 19 letters, 0 % of 100 B", "look: 19 letters, 100 % of 100 B"
    log = [line for line in parts.log_of(ran.client, ran.run, until=last) if line.startswith("look: ")]
    assert (log[0], log[-1]) == (first, last)
    assert len(log) <= 3


def test_the_page_has_plan_verdict_picture_and_progress(ran: Ran) -> None:
    artifacts = parts.artifacts_of(ran.client, ran.run)
    assert {key: artifact.type for key, artifact in artifacts.items()} == {
        "trial-1-plan": "markdown",
        "trial-1-verdict": "markdown",
        "trial-1-throughput": "markdown",
        "trial-1-progress": "progress",
    }


@pytest.mark.browser
def test_the_picture_is_really_shown(ran: Ran, server: parts.Server, tmp_path: Path) -> None:
    picture = parts.artifacts_of(ran.client, ran.run)["trial-1-throughput"]
    with browser.page() as tab:
        browser.artifacts_page(tab, server.ui, str(ran.run.id))
        tab.screenshot(path=tmp_path / "run.png")
        assert tab.get_by_text("trial-1-throughput").count() > 0
        assert browser.artifact_picture(tab, server.ui, str(picture.id), tmp_path / "picture.png") == trial.WIDTH


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that nobody listens on, and that nobody else gets."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@pytest.mark.parametrize("fault", ["silent_port", "closed_port"])
def test_a_server_that_is_down_is_named_within_ten_seconds(fault: str, request: pytest.FixtureRequest) -> None:
    from model_delivery.flows.server import server

    url = f"http://127.0.0.1:{request.getfixturevalue(fault)}/api"
    began = time.monotonic()
    with parts.settings_of(None, url), pytest.raises(Permanent) as raised, server():
        pass
    assert time.monotonic() - began < 10
    (finding,) = raised.value.findings
    assert url in finding.what
    assert "prefect server start" in finding.fix
