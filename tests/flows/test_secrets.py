"""Everything by its command, on a server with PostgreSQL behind, with a marked value in
every place that a secret can be in; afterwards nothing holds one.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient

from scripts.local_prefect import PREFECT
from tests.flows.conftest import Second
from tests.flows.test_automations import BLOCK, hearing
from tests.parts import prefect_server as parts
from tests.parts.cluster.waiting import until
from tests.parts.hubs.huggingface import HuggingFaceHub, running_hub
from tests.parts.marks import holds
from tests.parts.ports import free_port
from tests.parts.timing_engine import engine_folder
from tests.parts.tiny_model import tiny_model
from tests.unit.test_cli import DELIVER, deliver, environment

PLACES = ("hub token", "engine key", "engine key in a file", "environment", "webhook")
Said = subprocess.CompletedProcess[str]


@dataclass
class Ran:
    """What was done with ``marks``, a secret's value by its place; ``plain`` is no
    secret: a search that does not find it sees nothing.
    """

    second: Second
    folder: Path
    marks: dict[str, str]
    plain: str
    deployed: list[Said] = field(default_factory=list)
    ended: list[Said] = field(default_factory=list)
    states: list[Any] = field(default_factory=list)
    told: list[Any] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    commands: set[str] = field(default_factory=set)

    def spec(self, name: str, expect: str, key: dict[str, str]) -> Path:
        """A file that holds it."""
        load = {"profile": "smoke", "users": 2, "warmup": "0s", "duration": "300ms", "slo": {"error_rate_max": 0}}
        file = self.folder / f"{name}.json"
        content = {
            "apiVersion": "model-delivery/v1",
            "name": name,
            "model": {"source": "huggingface", "repo": "org/model", "token": {"env": "MARKED_TOKEN"}},
            "serving": {
                "args": ["--label", f"{self.plain}-{name}"],
                "api_key": key,
                "env": {"MORE": {"env": "MARKED_ENV"}},
            },
            "target": {"kind": "process", "engine": str(self.folder / "engine"), "port": free_port()},
            "gates": {"smoke": {"expect": expect}, "throughput": load},
            "rollout": {"strategy": "blue-green", "watch": "0s", "standby": "0s"},
        }
        file.write_text(json.dumps(content))
        return file

    def together(self, *commands: list[str]) -> list[Said]:
        """All at once: each spends seconds on its imports."""
        env = environment(self.folder / "home") | dict(self.second.server.env)
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        begun = [subprocess.Popen(command, env=env, text=True, **pipes) for command in commands]
        said = [one.communicate(timeout=120)[0] for one in begun]
        return [Said(one.args, one.returncode, text) for one, text in zip(begun, said, strict=True)]

    @contextmanager
    def seeing_commands(self) -> Iterator[None]:
        """Notes every process' command line, for the length of the block."""
        done = threading.Event()

        def see() -> None:
            while not done.wait(0.2):
                for process in psutil.process_iter(["cmdline"]):
                    self.commands.add(" ".join(process.info["cmdline"] or ()))

        watcher = threading.Thread(target=see)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


@pytest.fixture(scope="module")
def ran(second: Second, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    folder = tmp_path_factory.mktemp("marked")
    engine_folder(folder / "engine")
    marks = {place: f"{secrets.token_hex(12)}/+&" for place in PLACES}
    (folder / "key").write_text(marks["engine key in a file"])
    for own in ("home", "user", "scratch"):
        (folder / own).mkdir()
    env = {
        "MODEL_DELIVERY_HOME": str(folder / "home"),
        "HOME": str(folder / "user"),
        "TMPDIR": str(folder / "scratch"),
        "MARKED_TOKEN": marks["hub token"],
        "MARKED_KEY": marks["engine key"],
        "MARKED_ENV": marks["environment"],
    }
    made = Ran(second, folder, marks, secrets.token_hex(12))
    try:
        with running_hub(tiny_model(folder / "model")) as hub, hearing() as (url, made.told), made.seeing_commands():
            hub.token, made.tokens = marks["hub token"], hub.tokens
            with (
                parts.running_worker(second.server, env | {"HF_ENDPOINT": hub.url}),
                parts.client_of(second.server) as client,
            ):
                parts.wait_for_pool(client)
                save_block(url, marks["webhook"])
                everything(made, hub, client)
        yield made
    finally:
        for name in ("kept", "barred"):
            deliver(folder / "home", "down", name, MARKED_KEY=marks["engine key"])


def save_block(url: str, key: str) -> None:
    words = {name: f"{{{{{name}}}}}" for name in ("subject", "body", "key")}
    made: Any = {"name": "ops", "url": url, "json_data": words, "secrets": {"key": key}}
    CustomWebhookNotificationBlock(**made).save("ops", overwrite=True)


def everything(ran: Ran, hub: HuggingFaceHub, client: SyncPrefectClient) -> None:
    files = [
        ran.spec("kept", "Paris", {"env": "MARKED_KEY"}),
        ran.spec("barred", "Rome", {"file": str(ran.folder / "key")}),
    ]
    parts.make_cluster_pool(client)
    ran.deployed = ran.together(
        [PREFECT, "deploy", "--all", "--no-prompt"], [str(DELIVER), "register", *map(str, files)]
    )
    ran.deployed += ran.together([str(DELIVER), "automations", "--notify", BLOCK])
    assert [said.returncode for said in ran.deployed] == [0, 0, 0], ran.deployed
    ran.ended = ran.together(
        *([PREFECT, "deployment", "run", f"deliver/{name}", "--watch"] for name in ("kept", "barred"))
    )
    hub.status, hub.busy_times = 403, -1
    hub.headers = {"X-Error-Message": f"{hub.token} may not see it", "WWW-Authenticate": hub.token}
    again = client.read_deployment_by_name("deliver/kept")
    refused = parts.wait_for(client, client.create_flow_run_from_deployment(again.id))
    ran.log = parts.log_of(client, refused)
    ran.states = [client.read_flow_run(run_in(said)).state for said in ran.ended] + [refused.state]
    until(lambda: len([one for one in ran.told if "was refused" in one["subject"]]) > 0, 60, "nobody is told")
    until(lambda: b"model-delivery.release.refused" in ran.second.dump(), 30, "no event is kept")


def run_in(said: Said) -> UUID:
    found = re.search(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", said.stdout)
    assert found, said.stdout
    return UUID(found[0])


@pytest.mark.postgresql
def test_on_postgresql_everything_is_deployed_and_a_watched_run_ends_with_0_or_not(ran: Ran) -> None:
    assert ran.second.database is not None
    assert b"alembic_version" in ran.second.database.dump()
    kept, barred = ran.ended
    assert kept.returncode == 0, kept.stdout
    assert barred.returncode not in (0, 2), barred.stdout
    assert [state.name for state in ran.states] == ["Completed", "Failed", "Failed"]
    assert "exit code 4" in ran.states[1].message
    assert "403" in ran.states[2].message
    assert not [line for line in ran.log if "Traceback" in line], "what a hub refuses is no fault of ours"


def test_no_secret_of_any_place_is_left_anywhere(ran: Ran) -> None:
    assert f"Bearer {ran.marks['hub token']}" in ran.tokens
    assert {said["key"] for said in ran.told} == {ran.marks["webhook"]}
    found = {"database": ran.second.dump(), "processes": "\n".join(ran.commands).encode()}
    found |= {"printed": "".join(said.stdout for said in (*ran.deployed, *ran.ended)).encode()}
    for folder in (*(ran.folder / own for own in ("home", "user", "scratch")), ran.second.server.home):
        found |= {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert {where for where, content in found.items() if ran.plain.encode() in content} >= {"database", "processes"}
    assert len([where for where in found if where.endswith("report.json")]) == 2
    for place, mark in (ran.marks | {"Prefect's API": ran.second.auth}).items():
        assert not [where for where, content in found.items() if holds(content, mark)], place


def test_a_secret_is_found_however_it_is_written() -> None:
    mark = f"{secrets.token_hex(12)}/+&"
    for user in ("", "a", "me:", "admin:"):
        for text in (base64.b64encode(f"{user}{mark}".encode()), f"{user}{mark}".encode()):
            assert holds(b"x" + text + b"y", mark)
    assert not holds(base64.b64encode(secrets.token_bytes(100)), mark)
