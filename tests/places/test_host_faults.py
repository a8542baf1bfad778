"""The host place after a reboot, a crash, a damaged file, and beside what is not ours."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from model_delivery.base import Permanent, Trouble
from model_delivery.places.host.launcher import start_time
from model_delivery.places.host.place import Host
from model_delivery.places.host.processes import locked
from model_delivery.run.converge import converge
from model_delivery.targets.process import ENGINE, ROUTER, SLOT, STEP, Process, ProcessKey
from model_delivery.values import LEASE, RECORD_REF, Address, Current, Desired, Failed, Ref, Resource
from tests.parts.ports import free_port
from tests.places.conftest import NAME, engine, ready

E1 = Ref(ENGINE, "r1")
ROUTE = Ref(ROUTER, "router")


@pytest.fixture
def stranger() -> Iterator[psutil.Process]:
    """A process whose session's leader has ended, and has nothing to do with us."""
    shell = subprocess.Popen(["sh", "-c", "sleep 1000 & echo $!"], stdout=subprocess.PIPE, start_new_session=True)
    assert shell.stdout is not None
    left = psutil.Process(int(shell.stdout.readline()))
    shell.wait()
    yield left
    with suppress(psutil.NoSuchProcess):
        left.kill()


@pytest.mark.parametrize("boot", ["of before the reboot", "of now"])
def test_who_has_the_number_of_an_engine_by_now_is_left_alone(
    host: Host, payload: dict[str, Any], stranger: psutil.Process, boot: str
) -> None:
    session = os.getsid(stranger.pid)
    ticks, _, now = start_time(stranger.pid).partition("@")
    folder = host.process(NAME, E1)
    folder.path.mkdir(parents=True)
    start = f"{int(ticks) - 1}@{now if boot == 'of now' else 'another'}"
    state = {"pid": session, "start": start, "token": "t", "binding": {}}
    (folder.path / "state.json").write_text(json.dumps(state))
    folder.stop(0)
    host.put(engine(payload))
    host.delete(NAME, E1, grace=1)
    assert stranger.is_running()


def test_a_daemon_that_kept_the_engines_lock_blocks_neither_up_nor_down(host: Host, payload: dict[str, Any]) -> None:
    command = payload["engine"]["command"]
    payload["engine"]["command"] = ["/bin/sh", "-c", 'setsid sleep 1000 & echo $! > child; exec "$@"', "sh", *command]

    def daemon() -> psutil.Process:
        return psutil.Process(int((host.process(NAME, E1).path / "child").read_text()))

    host.put(engine(payload))
    kill(ready(host, "r1")["pid"])
    first = daemon()
    assert first.is_running()
    assert host.put(engine(payload)).action == "updated"
    assert ended(first)
    kill(ready(host, "r1")["pid"])
    second = daemon()
    assert host.delete(NAME, E1, grace=1).action == "deleted"
    assert ended(second)


def ended(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True


def kill(pid: int) -> None:
    process = psutil.Process(pid)
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    "content", ["", "{", "{}", "[]", '{"pid": "x"}', '{"pid": 1, "start": 2, "binding": []}', "[" * 9999]
)
def test_a_damaged_state_of_one_engine_stops_nothing_else_and_is_healed(
    host: Host, payload: dict[str, Any], content: str
) -> None:
    payload["cpus"] = len(os.sched_getaffinity(0))
    host.put(engine(payload))
    old = ready(host, "r1")["pid"]
    (host.process(NAME, E1).path / "state.json").write_text(content)
    other = Resource(RECORD_REF, "record", "other", {"a": 1})
    host.put(other)
    assert host.world("other").objects[RECORD_REF].resource == other
    assert not host.world(NAME).objects[E1].status["alive"]
    assert host.put(engine(payload)).action == "updated"
    assert ready(host, "r1")["pid"] != old
    assert not psutil.pid_exists(old) or psutil.Process(old).status() == psutil.STATUS_ZOMBIE
    (host.process(NAME, E1).path / "state.json").write_text(content)
    host.delete(NAME, E1, grace=1)
    assert not [p for p in psutil.process_iter() if str(host.home) in " ".join(cmdline(p))]


def cmdline(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []


def test_a_damaged_object_that_is_made_from_others_is_put_again_and_nothing_restarts(
    host: Host, payload: dict[str, Any]
) -> None:
    payload["cpus"] = len(os.sched_getaffinity(0))
    wanted = (engine(payload), router(free_port()), *slots("r1"))
    converge(host, NAME, wanted)
    before = ready(host, "r1")["pid"], host.world(NAME).objects[ROUTE].status["pid"]
    files = sorted(host.folder(NAME).glob("objects/*/*.json"))
    for file in (files[0], files[1], files[2]):
        whole = file.read_bytes()
        for cut in (0, 1, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:cut])
            host.world(NAME)
        assert [change.action for change in converge(host, NAME, wanted).changes] == ["updated"]
    now = host.world(NAME).objects
    assert (now[E1].status["pid"], now[ROUTE].status["pid"]) == before
    processes = [*map(psutil.Process, before)]
    for file in files:
        file.write_bytes(b"{")
    converge(host, NAME, ())
    assert not host.world(NAME).objects
    assert all(map(ended, processes))


@pytest.mark.parametrize("content", [b"{}", b"", b"[]", b'{"kind": "Record"}', b"[" * 9999, b"\xff"])
def test_a_damaged_record_is_named_and_never_taken_as_absent(host: Host, content: bytes) -> None:
    record = Resource(RECORD_REF, "record", NAME, {"a": 1})
    host.put(record)
    (file,) = host.folder(NAME).glob("objects/Record/*.json")
    whole = file.read_bytes()
    file.write_bytes(content)
    for act in (lambda: host.get(NAME, RECORD_REF), lambda: host.put(record), lambda: host.world(NAME)):
        with pytest.raises(Permanent, match=r"record\.json cannot be read"):
            act()
    file.write_bytes(whole.replace(b'"m"', b'"n"'))
    with pytest.raises(Permanent, match="it holds Record/record of n"):
        host.world(NAME)
    file.write_bytes(whole)


def test_a_result_of_any_length_has_finished_its_step_and_a_cut_one_has_not(host: Host) -> None:
    ref = Ref(STEP, "smoke-1")
    host.put(Resource(ref, "step", NAME, {"step": "smoke", "input": "{}"}))
    list(host.log(NAME, ref))
    log = host.process(NAME, ref).path / "output.jsonl"
    long = json.dumps({"result": "x" * 200_000, "length": 1, "sha256": ""}, separators=(",", ":"))
    for text, finished in ((f"{long}\n", True), (long, False), ('{"progress":{}}\n', False), ("", False)):
        log.write_text(text)
        assert host.world(NAME).objects[ref].status["finished"] is finished, text[:20]


@contextmanager
def foreign(port: int = 0) -> Iterator[tuple[int, list[str]]]:
    """A server of somebody else's: its port, and the keys that it was given."""
    keys: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            keys.append(self.headers.get("Authorization", ""))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port, keys
    finally:
        server.shutdown()
        server.server_close()


def router(port: int, delivery: str = NAME) -> Resource:
    return Resource(ROUTE, "route", delivery, {"host": "127.0.0.1", "port": port})


def slots(release: str) -> list[Resource]:
    return [Resource(Ref(SLOT, f"{n:02}"), "route", NAME, {"release": release}) for n in range(20)]


def routed(host: Host, port: int, release: str = "r1") -> Any:
    """Once it is no more than starting."""
    want = Desired(NAME, (), {release: 100}, Address("127.0.0.1", port))
    while not host.world(NAME).objects[ROUTE].status["healthy"]:
        host.hint(NAME, 0.1)
    return Process(ProcessKey(port=port)).routed(want, host.world(NAME))


def test_a_key_never_goes_to_who_has_an_engines_port_after_a_reboot(host: Host) -> None:
    port = free_port()
    with foreign() as (theirs, keys):
        host.slots(NAME).mkdir(parents=True)
        for n in range(20):
            (host.slots(NAME) / f"{n:02}").write_text(f"127.0.0.1:{theirs}")
        host.put(router(port))
        routed(host, port)
        asked = httpx.get(f"http://127.0.0.1:{port}/", headers={"Authorization": "Bearer mine"}, trust_env=False)
    assert asked.status_code >= 500
    assert not keys


def test_a_route_is_moved_when_the_release_that_is_meant_answers_through_it(
    tmp_path: Path, payload: dict[str, Any]
) -> None:
    host, port = Host(tmp_path / "a {brace} and {http.request.host}"), free_port()
    converge(host, NAME, (engine(payload), router(port), *slots("r1")))
    try:
        ready(host, "r1")
        assert isinstance(routed(host, port), Current)
        answer = httpx.get(f"http://127.0.0.1:{port}/v1/models", trust_env=False)
        assert answer.json()["data"][0]["id"] == NAME
        kill(host.world(NAME).objects[E1].status["pid"])
        assert "no engine" in routed(host, port).why
    finally:
        converge(host, NAME, ())


def test_of_two_routers_on_one_port_the_second_is_refused_though_none_listens_yet(host: Host) -> None:
    port = free_port()
    host.put(router(port))
    with pytest.raises(Permanent, match="port is taken"):
        host.put(router(port, "other"))


def test_a_port_that_somebody_shares_is_told(host: Host, tmp_path: Path, payload: dict[str, Any]) -> None:
    port, other = free_port(), Host(tmp_path / "another home")
    converge(host, NAME, (engine(payload), *slots("r1")))
    ready(host, "r1")
    host.put(router(port))
    other.put(router(port))  # Caddy shares it, and nobody listened yet
    try:
        while not binding_of(other, port):
            other.hint(NAME, 0.1)
        state = routed(host, port)
    finally:
        other.delete(NAME, ROUTE)
    assert isinstance(state, Failed)
    assert state.finding.code == "place.port-shared"
    assert isinstance(routed(host, port), Current)


def binding_of(host: Host, port: int) -> bool:
    """Does its router listen on the port?"""
    pid = host.process(NAME, ROUTE).state["pid"]
    return any(c.laddr.port == port for c in psutil.Process(pid).net_connections() if c.status == "LISTEN")


def test_a_lease_of_another_process_namespace_is_not_thought_dead(host: Host) -> None:
    spec = {"holder": "h", "request": "r", "host": "here", "expires": 0, "start": "1", "pid": os.getpid()}
    ref = Ref(LEASE, "lease")
    for space, alive in (("another boot pid:[1]", None), (None, True)):
        told = {**spec, "space": space} if space else spec
        host.put(Resource(ref, "lease", NAME, told))
        seen = host.get(NAME, ref)
        assert seen is not None
        assert seen.status["alive"] is alive, "an older version's says nothing of a space"


def test_who_holds_the_hosts_lock_for_too_long_is_told(tmp_path: Path) -> None:

    again = locked(tmp_path / "lock", seconds=0.05)
    with locked(tmp_path / "lock"), pytest.raises(Trouble, match=r"is held by another process.*host\.locked"), again:
        pass


def test_a_stopped_engine_is_killed_with_its_children(host: Host, payload: dict[str, Any]) -> None:
    host.put(engine(payload))
    pid = ready(host, "r1")["pid"]
    os.kill(pid, signal.SIGSTOP)
    host.delete(NAME, E1, grace=0.1)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


PLANTED = (
    "",
    "objects",
    "objects/Engine",
    "processes",
    "processes/Engine-r1",
    "processes/Engine-r1/lock",
    "logs",
)


@pytest.mark.parametrize("where", PLANTED)
def test_a_link_in_the_state_folders_own_path_is_named_and_what_it_leads_to_stays(
    host: Host, payload: dict[str, Any], tmp_path: Path, where: str
) -> None:
    host.put(Resource(RECORD_REF, "record", NAME, {"a": 1}))
    link, victim = host.home / "deliveries" / NAME / where, tmp_path / "victim"
    if where.endswith("lock"):
        victim.write_text("mine")
    else:
        for inner in ("Engine-r1", "Engine/r1.json", "objects/Engine/r1.json", "r1.json"):
            (victim / inner).parent.mkdir(parents=True, exist_ok=True)
        (victim / "Engine-r1").mkdir()
        (victim / "Engine-r1" / "weights").write_text("mine")
    before = {str(path): path.is_file() and path.read_bytes() for path in (victim, *victim.rglob("*"))}
    if link.is_dir():
        link.rename(tmp_path / "aside")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(victim)
    with suppress(Trouble, OSError):
        host.put(engine(payload))
    with suppress(Trouble, OSError):
        host.delete(NAME, E1)
    with pytest.raises((Permanent, OSError), match=f"{link}( is a link|')"):
        host.put(engine(payload))
    assert {str(path): path.is_file() and path.read_bytes() for path in (victim, *victim.rglob("*"))} == before
    link.unlink()


def test_of_a_file_that_is_written_beside_a_state_no_link_is_followed(
    host: Host, payload: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "victim").write_text("mine")
    folder = host.process(NAME, E1).path
    folder.mkdir(parents=True)
    (folder / "state.json.tmp").symlink_to(tmp_path / "victim")
    host.put(engine(payload))
    assert ready(host, "r1")["healthy"]
    assert (tmp_path / "victim").read_text() == "mine"


def test_a_log_that_is_a_link_is_not_written_through(host: Host, payload: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    host.logs(NAME).mkdir(parents=True)
    (host.logs(NAME) / "r1-2.log").symlink_to(tmp_path / "victim")
    host.put(engine(payload))
    assert ready(host, "r1")["log"].endswith("r1-3.log")
    assert (tmp_path / "victim").read_text() == "mine"


def test_a_pipe_in_the_place_of_a_lock_or_a_log_is_not_waited_for(host: Host) -> None:
    lock = host.process(NAME, E1).path / "lock"
    lock.parent.mkdir(parents=True)
    os.mkfifo(lock)
    assert not host.process(NAME, E1).alive
    os.mkfifo(host.home / "pipe")
    with pytest.raises(OSError, match="pipe"), locked(host.home / "pipe"):
        pass
    step = Ref(STEP, "smoke-1")
    host.put(Resource(step, "step", NAME, {"step": "smoke", "input": "{}"}))
    list(host.log(NAME, step))
    output = host.process(NAME, step).path / "output.jsonl"
    output.unlink()
    os.mkfifo(output)
    assert host.world(NAME).objects[step].status["finished"] is False
