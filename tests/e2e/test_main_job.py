"""The main job as a user runs it, in the order of a service's life. Each test goes on
where the one before ended.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from model_delivery.targets.process import ROUTER
from model_delivery.values import Ref
from tests.e2e.service_under_test import NAME, Service, Streams, prepare
from tests.parts.prefect_server import artifacts_of, client_of, running_server, running_worker

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("e2e")
    prepare(folder / "home")
    with running_server(folder / "prefect") as server:
        made = Service(folder / "home", server)
        with running_worker(server, {"MODEL_DELIVERY_HOME": str(made.home)}):
            try:
                yield made
            finally:
                made.deliver("down", NAME)


def test_a_run_killed_in_fetch_start_and_load_ends_promoted_with_one_engine_start(service: Service) -> None:
    registered = wait_for_pool(service)
    assert "prefect deployment run 'deliver/smollm2'" in registered
    first = service.start()
    service.kill_run_when(lambda: service.step_runs("fetch"))
    assert service.ended(first).state_name == "Crashed"
    second = service.start()
    service.kill_run_when(lambda: any(status["alive"] for status in service.engines().values()))
    assert service.ended(second).state_name == "Crashed"
    third = service.start()
    service.kill_run_when(lambda: service.step_runs("load"))
    assert service.ended(third).state_name == "Crashed"
    last = service.ended(service.start())
    assert last.state_name == "Completed", last.state
    assert len(service.engine_starts()) == 1
    assert "Paris" in service.ask()["choices"][0]["message"]["content"]
    assert service.record.serving
    with client_of(service.server) as client:
        shown = artifacts_of(client, last)
    assert {"smollm2-plan", "smollm2-progress", "smollm2-verdict", "smollm2-throughput"} <= set(shown)
    assert "data:image/png;base64," in str(shown["smollm2-throughput"].data)


def wait_for_pool(service: Service) -> str:
    deadline = time.monotonic() + 90
    while True:
        done = service.deliver("register", str(service.spec(1024)))
        if done.returncode == 0 or time.monotonic() > deadline:
            assert done.returncode == 0, done.stderr
            return done.stdout


def test_a_rerun_of_an_unchanged_world_starts_nothing_and_says_so(service: Service) -> None:
    starts, pids = service.engine_starts(), {status["pid"] for status in service.engines().values()}
    said = service.deliver("up", str(service.spec(1024)), with_server=False)
    assert said.returncode == 0, said.stderr
    assert "smollm2: unchanged" in said.stdout
    assert service.engine_starts() == starts
    assert {status["pid"] for status in service.engines().values()} == pids


def test_an_impossible_slo_is_refused_and_the_old_release_answers_all_along(service: Service) -> None:
    serving = service.record.serving
    service.deliver("register", str(service.spec(896, {"ttft_p95_max": "1ms"})))
    with service.asked_all_along() as seen:
        ended = service.ended(service.start())
    assert ended.state_name == "Failed"
    message = str(ended.state and ended.state.message)
    assert "exit code 4" in message
    assert "TTFT p95" in message
    assert "over the bound of 1 ms" in message
    assert len(seen) > 20
    assert set(seen) == {"200"}
    assert service.record.serving == serving
    assert list(service.engines()) == [serving]
    last = service.record.ended[-1]
    assert (last.outcome, last.exit_code) == ("gate failed", 4)
    assert last.report is not None
    assert Path(last.report).exists()
    assert last.report in message


def test_a_changed_spec_is_promoted_without_cutting_a_stream(service: Service) -> None:
    old = service.record.serving
    assert old is not None
    old_pid = service.engines()[old]["pid"]
    service.deliver("register", str(service.spec(768)))
    run = service.start()
    while not service.step_runs("load"):
        assert psutil.pid_exists(old_pid)
        time.sleep(0.1)
    streams = Streams(service.url)
    with streams.running():
        ended = service.ended(run)
        time.sleep(2)
    assert ended.state_name == "Completed", ended.state
    assert service.record.serving != old
    assert service.record.previous == old
    slots = [(service.host.folder(NAME) / "slots" / f"{n:02}").stat().st_mtime for n in range(20)]
    across = [one for one in streams.done if one[0] < min(slots) and one[1] > max(slots)]
    assert len(across) >= 4, (min(slots), max(slots), streams.done)
    assert [one for one in streams.done if one[2] != "length" or not one[3] or one[4]] == []
    assert not psutil.pid_exists(old_pid) or psutil.Process(old_pid).status() == psutil.STATUS_ZOMBIE


def test_rollback_brings_the_old_release_back_and_history_shows_both(service: Service) -> None:
    old, new = service.record.previous, service.record.serving
    done = service.deliver("rollback", NAME, with_server=False)
    assert done.returncode == 0, done.stderr
    assert service.record.serving == old
    assert "Paris" in service.ask()["choices"][0]["message"]["content"]
    shown = service.deliver("history", NAME).stdout
    for part in (old, new, "promoted", "rolled back to", "--max-model-len 1024", "--max-model-len 768", "ttft_p95"):
        assert str(part) in shown
    commits = {ended.commit for ended in service.record.ended}
    assert len(commits) == 1
    assert next(iter(commits))[:12] in shown


def test_status_list_logs_and_connect(service: Service) -> None:
    assert "smollm2: up" in service.deliver("status", NAME).stdout
    assert service.url in service.deliver("list").stdout
    assert "vLLM" in service.deliver("logs", NAME).stdout
    assert f"{service.url}/v1/chat/completions" in service.deliver("connect", NAME).stdout


def test_an_engine_that_stands_still_under_load_is_noticed_and_healed_by_the_next_run(service: Service) -> None:
    (status,) = service.engines().values()
    children = psutil.Process(status["pid"]).children(recursive=True)
    core = next(child for child in children if "EngineCore" in " ".join((child.name(), *child.cmdline())))
    with service.asked_all_along() as seen:
        while "200" not in seen:
            time.sleep(0.1)
        core.suspend()
        began = time.time()
        healed = service.deliver("up", str(service.spec(1024)), with_server=False)
        answered = len(seen)
        while len(seen) < answered + 3:
            time.sleep(0.1)
    assert healed.returncode == 0, healed.stderr
    assert "smollm2: healed" in healed.stdout
    told = re.search(r"it did not answer within (\d+) s, and did nothing for others meanwhile", healed.stderr)
    assert told, healed.stderr
    (evidence,) = (service.host.folder(NAME) / "silent").iterdir()
    assert {file.name for file in evidence.iterdir()} == {"engine.log", "metrics.prom", "stacks.txt"}
    noticed = (evidence / "engine.log").stat().st_mtime - began
    assert noticed < int(told[1]) + 5 + 15, "the probe's deadline, 5 s, and the command's own start on a busy machine"
    failed = [answer for answer in seen if answer != "200"]
    assert failed, "nobody was asked while it stood still"
    assert seen[-2:] == ["200", "200"], seen
    print(f"noticed {noticed:.1f} s after the stop; {len(failed)} of {len(seen)} requests failed")


def test_down_leaves_weights_and_history_and_no_process(service: Service) -> None:
    pids = [o.status["pid"] for o in service.host.world(NAME).objects.values() if o.status.get("alive")]
    assert len(pids) == 2
    done = service.deliver("down", NAME)
    assert done.returncode == 0, done.stderr
    assert [
        pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    ] == []
    assert service.host.get(NAME, Ref(ROUTER, "router")) is None
    assert list(service.home.glob("models/local/*/*/model.safetensors"))
    assert "rolled back to" in service.deliver("history", NAME).stdout
