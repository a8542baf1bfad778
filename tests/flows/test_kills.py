"""kill -9 of the worker, and of the server, while a delivery runs: right after at most
one rerun, nothing doubled, no run that stays Running. (Of the run itself:
test_operations.)
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.flows.conftest import Second
from tests.flows.test_automations import automations
from tests.flows.test_operations import NAME, Lab
from tests.parts import prefect_server as parts
from tests.parts.cluster.waiting import until
from tests.parts.ports import free_port
from tests.parts.timing_engine import engine_folder
from tests.parts.tiny_model import tiny_model
from tests.unit.test_cli import DELIVER, deliver, environment

SERVER_AWAY_SECONDS = 20.0
DEAD_SECONDS = 150.0  # three heartbeats of 30 s, and the server's own rounds


@pytest.fixture
def guarded(second: Second, tmp_path: Path) -> Iterator[Lab]:
    """Without a worker: each test starts its own."""
    home = tmp_path / "home"
    with parts.client_of(second.server) as client:
        lab = Lab(client, second.server, home, tiny_model(tmp_path / "model"), engine_folder(tmp_path), free_port())
        try:
            yield lab
        finally:
            for name in lab.place.deliveries():
                deliver(home, "down", name)


def engines(lab: Lab) -> list[psutil.Process]:
    """Those of the delivery, whoever started them."""
    words = {str(lab.engine / "timing-server"), NAME}
    return [one for one in psutil.process_iter(["cmdline"]) if words <= {*(one.info["cmdline"] or ())}]


def right(lab: Lab) -> None:
    """One release serves by one engine; nothing is on its way."""
    record = lab.record
    assert record.serving is not None
    assert record.candidate is None
    assert not lab.loading()
    assert len(engines(lab)) == 1
    promoted = [ended for ended in record.ended if ended.outcome == "promoted"]
    assert len(promoted) == len({ended.release for ended in promoted}) == 1


def test_a_run_whose_worker_is_killed_ends_and_one_rerun_by_another_worker_makes_it_right(guarded: Lab) -> None:
    spec, home = guarded.spec("8s"), {"MODEL_DELIVERY_HOME": str(guarded.home)}
    with parts.running_worker(guarded.server, home) as worker:
        parts.wait_for_pool(guarded.client)
        run = guarded.begin(spec)
        until(guarded.loading, 90, "the load test does not begin")
        os.kill(worker, signal.SIGKILL)
    parts.wait_for(guarded.client, run, DEAD_SECONDS)
    with parts.running_worker(guarded.server, home):
        again = guarded.ended(spec)
    assert again.state is not None
    assert again.state.name == "Completed", again.state
    right(guarded)


@pytest.mark.timeout(400)
def test_a_killed_server_that_comes_back_finds_its_run_well_and_one_that_died_meanwhile_crashed(
    guarded: Lab, second: Second
) -> None:
    automations(guarded)
    with parts.running_worker(guarded.server, {"MODEL_DELIVERY_HOME": str(guarded.home)}):
        parts.wait_for_pool(guarded.client)
        run, lost = guarded.begin(guarded.spec("25s")), by_hand(guarded, "lost")
        until(lambda: guarded.loading() and guarded.loading("lost"), 90, "the load tests do not begin")
        second.mortal.kill()
        lost.kill()
        lost.wait()
        time.sleep(SERVER_AWAY_SECONDS)
        second.mortal.start_again()
        ended = parts.wait_for(guarded.client, run)
        assert ended.state is not None
        assert ended.state.name == "Completed", ended.state
        assert {task.state_name for task in guarded.tasks(run)} == {"Completed"}
        right(guarded)
        (gone,) = [one for one in guarded.client.read_flow_runs() if one.name == "lost"]
        ended = parts.wait_for(guarded.client, gone, DEAD_SECONDS)
        assert ended.state is not None
        assert (ended.state.name, "No heartbeat" in str(ended.state.message)) == ("Crashed", True)


def by_hand(lab: Lab, name: str) -> subprocess.Popen[bytes]:
    """A run of another delivery that no worker looks after."""
    file = lab.home.parent / f"{name}.json"
    target = {"kind": "process", "engine": str(lab.engine), "port": free_port()}
    file.write_text(json.dumps(lab.spec("300s", name=name, target=target).model_dump(mode="json")))
    env = environment(lab.home) | dict(lab.server.env)
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([str(DELIVER), "up", str(file)], env=env, **quiet)
