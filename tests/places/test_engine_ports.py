"""Who listens where an engine or a router should, and whose words are told."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest

from model_delivery.places.host.place import Host
from model_delivery.run.converge import converge
from model_delivery.targets.process import ENGINE, ROUTER, Process, ProcessKey, ProcessPayload
from model_delivery.values import Failed, Ref, Release
from tests.parts.ports import free_port
from tests.places.conftest import NAME, engine, ready
from tests.places.test_host_faults import foreign, router, slots

E1 = Ref(ENGINE, "r1")
ROUTE = Ref(ROUTER, "router")


def test_who_listens_on_an_engines_port_is_told_and_gets_no_traffic(host: Host, payload: dict[str, Any]) -> None:
    payload["engine"]["command"] = ["/bin/sleep", "1000"]
    made = ProcessPayload.model_validate(payload)
    release = Release("r1", made, 1)
    host.put(engine(made.content()))
    port = host.world(NAME).objects[E1].status["port"]
    with foreign(port) as (_, asked):
        converge(host, NAME, (engine(made.content()), *slots("r1")))
        world = host.world(NAME)
        state = Process(ProcessKey()).readiness(release, world)
        assert not world.objects[E1].status["healthy"]
        assert {path.read_text() for path in host.slots(NAME).iterdir()} == {""}
    assert isinstance(state, Failed)
    assert state.finding.code == "host.engine-port-taken"
    assert f"process {os.getpid()} (" in state.finding.why
    assert not any(asked)
    converge(host, NAME, (engine(made.content()), *slots("r1")))
    assert {path.read_text() for path in host.slots(NAME).iterdir()} == {f"127.0.0.1:{port}"}


@pytest.mark.parametrize(
    "wrapped", [[], ["/bin/sh", "-c", '"$@"; true', "sh"]], ids=["itself", "a child of its session"]
)
def test_an_engine_that_listens_itself_is_healthy_beside_another_address(
    host: Host, payload: dict[str, Any], wrapped: list[str]
) -> None:
    payload["engine"]["command"] = [*wrapped, *payload["engine"]["command"]]
    host.put(engine(payload))
    port = ready(host, "r1")["port"]
    with socket.create_server(("127.0.0.2", port)):
        assert ready(host, "r1")["healthy"]


def test_of_a_router_that_ended_only_its_last_start_is_told(host: Host) -> None:
    host.logs(NAME).mkdir(parents=True)
    (host.logs(NAME) / "router.log").write_text("an older failure\n")
    host.put(router(free_port()))
    assert "an older failure" not in host.world(NAME).objects[ROUTE].status["log_tail"]
