"""The host place: what put and delete leave on disk and among the processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from model_delivery.base import NoRoom, Permanent
from model_delivery.places.host.place import Host
from model_delivery.targets.process import ENGINE, ROUTER, SLOT
from model_delivery.values import ABSENT, RECORD, Mismatch, Ref, Resource
from tests.parts.ports import free_port
from tests.places.conftest import NAME, engine, ready


def test_put_is_a_compare_and_swap(host: Host) -> None:
    record = Resource(Ref(RECORD, "record"), "record", NAME, {"a": 1})
    first = host.put(record, expect=ABSENT)
    with pytest.raises(Mismatch):
        host.put(record, expect=ABSENT)
    changed = Resource(record.ref, "record", NAME, {"a": 2})
    assert host.put(changed, expect=first.version or "").action == "updated"
    with pytest.raises(Mismatch):
        host.put(record, expect=first.version or "")
    assert host.put(changed).action == "unchanged"


def test_a_dry_run_writes_nothing(host: Host, payload: dict[str, Any]) -> None:
    assert host.put(engine(payload), dry_run=True).action == "created"
    assert not host.home.exists()


def test_an_engine_survives_its_starter_and_is_adopted(host: Host, payload: dict[str, Any]) -> None:
    host.put(engine(payload))
    pid = ready(host, "r1")["pid"]
    other = Host(host.home)
    assert other.put(engine(payload)).action == "unchanged"
    assert other.world(NAME).objects[Ref(ENGINE, "r1")].status["pid"] == pid
    assert os.getsid(pid) == pid
    assert Path(psutil.Process(pid).cwd()).is_relative_to(host.home), "its starter's own folder may be gone before it"


def test_a_dead_engine_differs_and_is_started_again(host: Host, payload: dict[str, Any]) -> None:
    host.put(engine(payload))
    pid = ready(host, "r1")["pid"]
    os.kill(pid, signal.SIGKILL)
    while host.process(NAME, Ref(ENGINE, "r1")).alive:
        host.hint(NAME, 0.1)
    status = host.world(NAME).objects[Ref(ENGINE, "r1")].status
    assert (status["alive"], status["exit_code"]) == (False, -9)
    assert host.put(engine(payload)).action == "updated"
    assert ready(host, "r1")["pid"] != pid


def test_what_a_dead_engine_left_of_its_session_is_ended_and_it_comes_back(host: Host, payload: dict[str, Any]) -> None:
    command = payload["engine"]["command"]
    payload["engine"]["command"] = ["/bin/sh", "-c", 'sleep 1000 & echo $! > child; exec "$@"', "sh", *command]
    payload["cpus"] = len(os.sched_getaffinity(0))
    host.put(engine(payload))
    pid = ready(host, "r1")["pid"]
    child = psutil.Process(int((host.folder(NAME) / "processes" / "Engine-r1" / "child").read_text()))
    os.kill(pid, signal.SIGKILL)
    psutil.Process(pid).wait()
    assert child.is_running(), "it holds the engine's lock, as vLLM's forked processes do"
    assert host.world(NAME).objects[Ref(ENGINE, "r1")].status["alive"] is False
    assert host.put(engine(payload)).action == "updated"
    assert ready(host, "r1")["pid"] != pid
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_slot_whose_address_is_stale_differs(host: Host, payload: dict[str, Any]) -> None:
    slot = Resource(Ref(SLOT, "00"), "route", NAME, {"release": "r1"})
    host.put(engine(payload))
    before = ready(host, "r1")
    host.put(slot)
    assert host.put(slot).action == "unchanged"
    host.delete(NAME, Ref(ENGINE, "r1"), grace=1)
    host.put(engine(payload))
    after = ready(host, "r1")
    assert before["port"] != after["port"]
    assert host.put(slot).action == "updated"
    assert (host.folder(NAME) / "slots" / "00").read_text() == f"127.0.0.1:{after['port']}"


def test_engines_get_cpus_of_their_own_until_there_are_none(host: Host, payload: dict[str, Any]) -> None:
    count = len(os.sched_getaffinity(0))
    taken = []
    for n in range(count):
        host.put(engine(payload, f"r{n}"))
        taken += ready(host, f"r{n}")["cpus"]
    assert sorted(taken) == sorted(os.sched_getaffinity(0))
    with pytest.raises(NoRoom, match=f"1 CPU wanted, 0 of {count} free"):
        host.put(engine(payload, "more"))


def test_an_engine_that_ignores_sigterm_is_killed_after_its_grace(host: Host, payload: dict[str, Any]) -> None:
    host.put(engine(payload, "r1", "--ignore-sigterm"))
    pid = ready(host, "r1")["pid"]
    assert host.delete(NAME, Ref(ENGINE, "r1"), grace=0.2).action == "deleted"
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert host.delete(NAME, Ref(ENGINE, "r1")).action == "absent"


def test_an_engine_that_cannot_be_executed_is_a_finding(host: Host, payload: dict[str, Any]) -> None:
    payload["engine"]["command"] = ["/nowhere/engine"]
    with pytest.raises(Permanent, match=r"/nowhere/engine cannot be started.*FileNotFoundError"):
        host.put(engine(payload))


def test_a_taken_port_of_the_service_is_a_finding(host: Host) -> None:
    port = free_port()
    router = Resource(Ref(ROUTER, "router"), "route", NAME, {"host": "127.0.0.1", "port": port})
    host.put(router)
    other = Resource(Ref(ROUTER, "router"), "route", "other", {"host": "127.0.0.1", "port": port})
    while not host.world(NAME).objects[Ref(ROUTER, "router")].status["healthy"]:
        host.hint(NAME, 0.1)
    with pytest.raises(Permanent, match="port is taken"):
        host.put(other)


def test_a_secret_reaches_the_engine_and_no_file(
    host: Host, payload: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "s3cret-value")
    payload |= {"secret_env": {"VLLM_API_KEY": {"env": "MY_KEY"}}, "api_key": {"env": "MY_KEY"}}
    host.put(engine(payload))
    pid = ready(host, "r1")["pid"]
    assert psutil.Process(pid).environ()["VLLM_API_KEY"] == "s3cret-value"
    assert "s3cret-value" not in " ".join(psutil.Process(pid).cmdline())
    files = [path for path in host.home.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"s3cret-value" in path.read_bytes()]


def test_the_log_of_an_engine_outlives_it_and_of_several_the_newest_counts(host: Host, payload: dict[str, Any]) -> None:
    for _ in range(2):
        host.put(engine(payload))
        ready(host, "r1")
        host.delete(NAME, Ref(ENGINE, "r1"), grace=1)
    logs = sorted(host.logs(NAME).glob("r1-*.log"))
    assert [log.name for log in logs] == ["r1-1.log", "r1-2.log"]
    logs[1].write_text("of the second\n")
    assert list(host.engine_log(NAME, "r1")) == [b"of the second"]


@pytest.mark.root
def test_engines_that_do_not_listen_yet_have_a_port_each() -> None:
    code = (
        "from model_delivery.places.host.binding import bind\n"
        "given = []\n"
        "for _ in range(4): given.append(bind({'cpus': 0, 'gpus': 0, 'memory': 0}, given))\n"
        "print(*sorted(one['port'] for one in given))"
    )
    few = 'ip link set lo up; echo 50000 50003 > /proc/sys/net/ipv4/ip_local_port_range; exec "$@"'
    words = ["unshare", "--net", "sh", "-ec", few, "sh", sys.executable, "-c", code]
    assert subprocess.run(words, check=True, capture_output=True, text=True).stdout == "50000 50001 50002 50003\n"


def test_the_log_of_each_start_is_a_new_one_though_older_ones_were_removed(host: Host, payload: dict[str, Any]) -> None:
    host.logs(NAME).mkdir(parents=True)
    for number in (2, 7, 10):
        (host.logs(NAME) / f"r1-{number}.log").write_text("an older failure\n")
    (host.logs(NAME) / f"r1-{'9' * 200}.log").write_text("no log of ours\n")
    host.put(engine(payload))
    status = ready(host, "r1")
    assert status["log"].endswith("r1-11.log")
    assert "an older failure" not in status["log_tail"]
    host.delete(NAME, Ref(ENGINE, "r1"), grace=1)
    os.utime(host.logs(NAME) / "r1-2.log")
    assert b"an older failure" not in list(host.engine_log(NAME, "r1"))
