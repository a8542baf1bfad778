"""One deployment for each spec: made once, brought up to date, refused where it could not
run.
"""

from __future__ import annotations

import base64
import json
import sqlite3
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.settings import PREFECT_API_AUTH_STRING, temporary_settings

from model_delivery.base import Permanent, Refused, Retryable
from model_delivery.flows import registration
from model_delivery.flows.registration import Wanted
from model_delivery.spec import DeliverySpec, parse_spec
from tests.parts import prefect_server as parts
from tests.unit.test_cli import deliver
from tests.unit.test_secrets import KEY, echoing

__all__ = ["echoing"]


@dataclass(frozen=True)
class Registered:
    id: str
    action: str
    differs: tuple[str, ...]
    paused: bool
    older: tuple[str, ...]


def register(spec: DeliverySpec, pool: str, patience: float = 45.0) -> Registered:
    found = registration.propose([spec], Wanted(pool), patience)
    (one,) = found.proposals
    made = registration.register(one, patience)
    return Registered(made, one.action, one.differs or (), one.paused, found.older)


def spec(tmp_path: Path, **more: Any) -> DeliverySpec:
    return parse_spec(
        {
            "apiVersion": "model-delivery/v1",
            "name": "tiny",
            "model": {"source": "local", "path": str(tmp_path)},
            "target": {"kind": "process", "engine": "vllm-cpu", "port": 8000},
            **more,
        }
    )


def test_registering_again_updates_the_one_deployment(server: parts.Server, worker: int, tmp_path: Path) -> None:
    assert worker
    with parts.client_of(server) as client:
        parts.wait_for_pool(client)
        nightly = {"cron": "0 3 * * *", "timezone": "Europe/Berlin"}
        first = register(spec(tmp_path, schedule=nightly), parts.POOL)
        made = client.read_deployment_by_name("deliver/tiny")
        assert str(made.id) == first.id
        assert (made.entrypoint, made.pull_steps, made.work_pool_name) == (
            "model_delivery.flows.deliver.deliver",
            [],
            parts.POOL,
        )
        assert made.parameters == {"spec": spec(tmp_path, schedule=nightly).model_dump(mode="json")}
        (schedule,) = made.schedules
        assert isinstance(schedule.schedule, CronSchedule)
        assert (schedule.schedule.cron, schedule.schedule.timezone) == ("0 3 * * *", "Europe/Berlin")
        assert schedule.parameters == {"scheduled": True}
        assert (made.global_concurrency_limit, made.concurrency_options) == (None, None), (
            "a slot would outlive a run that died with its worker"
        )

        again = register(spec(tmp_path, concurrency="refuse"), parts.POOL)
        now = client.read_deployment_by_name("deliver/tiny")
        assert (again.id, now.schedules, now.parameters["spec"]["concurrency"]) == (first.id, [], "refuse")
        assert (first.action, again.action) == ("new", "changed")
        assert set(again.differs) == {
            'schedule: "0 3 * * * Europe/Berlin" → null',
            'spec.concurrency: "wait" → "refuse"',
            *(line for line in again.differs if line.startswith("spec.schedule")),
        }
        assert register(spec(tmp_path, concurrency="refuse"), parts.POOL).action == "unchanged"
        assert [one.id for one in client.read_deployments() if one.name == "tiny"] == [made.id]


def test_a_pool_that_is_not_there_is_named_with_those_that_are(
    server: parts.Server, worker: int, tmp_path: Path
) -> None:
    assert worker
    with parts.client_of(server) as client:
        parts.wait_for_pool(client)
        with pytest.raises(Refused) as raised:
            register(spec(tmp_path), "gpu-pool")
    (finding,) = raised.value.findings
    assert "gpu-pool" in finding.what
    assert parts.POOL in finding.why


def test_without_an_address_the_setting_is_named(tmp_path: Path) -> None:
    with parts.settings_of(None), pytest.raises(Permanent, match="PREFECT_API_URL"):
        register(spec(tmp_path), parts.POOL)


def test_a_schedule_that_was_paused_in_prefect_stays_paused_when_its_spec_is_registered_again(
    server: parts.Server, worker: int, tmp_path: Path
) -> None:
    assert worker
    with parts.client_of(server) as client:
        parts.wait_for_pool(client)
        first = register(spec(tmp_path, name="nightly", schedule={"cron": "0 3 * * *"}), parts.POOL)
        made = client.read_deployment_by_name("deliver/nightly")
        assert [schedule.active for schedule in made.schedules] == [True]
        client.update_deployment_schedule(made.id, made.schedules[0].id, active=False)
        again = register(spec(tmp_path, name="nightly", schedule={"cron": "0 4 * * *"}), parts.POOL)
        (schedule,) = client.read_deployment_by_name("deliver/nightly").schedules
        assert (first.paused, again.paused, schedule.active) == (False, True, False)
        assert isinstance(schedule.schedule, CronSchedule)
        assert schedule.schedule.cron == "0 4 * * *"


def test_what_a_person_set_in_prefect_stays_when_the_spec_is_registered_again(
    server: parts.Server, worker: int, tmp_path: Path
) -> None:
    assert worker
    with parts.client_of(server) as client:
        parts.wait_for_pool(client)
        register(spec(tmp_path, name="kept", schedule={"cron": "0 3 * * *"}), parts.POOL)
        made = client.read_deployment_by_name("deliver/kept")
        env = {**made.job_variables["env"], "HF_ENDPOINT": "http://127.0.0.1:1"}
        theirs = {
            "parameters": {**made.parameters, "take_over": True},
            "job_variables": {"env": env, "working_dir": "/"},
        }
        client.update_deployment(made.id, DeploymentUpdate(**theirs, concurrency_limit=3))
        hourly = DeploymentScheduleCreate(schedule=IntervalSchedule(interval=timedelta(hours=1)), active=False)
        client.create_deployment_schedules(made.id, [hourly])
        again = register(spec(tmp_path, name="kept", schedule={"cron": "0 4 * * *"}), parts.POOL)
        now = client.read_deployment_by_name("deliver/kept")
        assert (again.action, again.paused) == ("changed", False)
        assert now.job_variables == theirs["job_variables"]
        assert (now.parameters["take_over"], now.global_concurrency_limit and now.global_concurrency_limit.limit) == (
            True,
            3,
        )
        crons = {getattr(one.schedule, "cron", ""): one.active for one in now.schedules if one.slug}
        assert crons == {"0 4 * * *": True}
        assert [schedule.active for schedule in now.schedules if not schedule.slug] == [False]
        register(spec(tmp_path, name="kept"), parts.POOL)
        assert [one.slug for one in client.read_deployment_by_name("deliver/kept").schedules] == [None]


def test_a_pool_whose_workers_cannot_have_us_is_refused(server: parts.Server, tmp_path: Path) -> None:
    image = {"type": "string", "default": "registry.example/model-delivery:1"}
    ours = {
        "job_configuration": {"image": "{{ image }}"},
        "variables": {"type": "object", "properties": {"image": image}},
    }
    command = {"properties": {"command": {"type": "string"}}}
    bare = {"job_configuration": {"command": "{{ command }}"}, "variables": {"type": "object", **command}}
    cluster = {"target": {"kind": "deployment"}, "model": {"source": "huggingface", "repo": "a/b"}}
    with parts.client_of(server) as client:
        for name, kind, template in (("bare", "docker", bare), ("ours", "kubernetes", ours)):
            client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=template), overwrite=True)
        for asked, pool in ((spec(tmp_path), "bare"), (spec(tmp_path), "ours"), (spec(tmp_path, **cluster), "bare")):
            with pytest.raises(Refused, match="cannot run a delivery: its type is"):
                register(asked, pool)
        assert register(spec(tmp_path, name="in-cluster", **cluster), "ours").id


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("http://{host}", r"no Prefect API.*\n.*PREFECT_API_URL=http://{host}/api"),
        ("http://{host}/", r"no Prefect API.*\n.*PREFECT_API_URL=http://{host}/api"),
        ("http://{host}/api/v1", r"no Prefect API.*\n.*PREFECT_API_URL=http://{host}/api"),
        ("{host}/api", "no http:// or https://"),
        ("localhost:4200/api", "no http:// or https://"),
        ("http://", "no http:// or https://"),
        ("http://{host}:x/api", "no http:// or https://"),
        ("https://{host}/api", r"where it speaks plain http: .*PREFECT_API_URL=http://{host}/api"),
    ],
)
def test_an_address_that_is_not_the_apis_is_told_with_the_one_that_is(
    server: parts.Server, tmp_path: Path, form: str, message: str
) -> None:
    host = server.ui.removeprefix("http://")
    with parts.settings_of(None, form.format(host=host)), pytest.raises(Refused, match=message.format(host=host)):
        register(spec(tmp_path), parts.POOL)


def test_a_password_in_the_servers_address_is_not_repeated(tmp_path: Path) -> None:
    with parts.settings_of(None, "http://me:s3cret@127.0.0.1:1/api"), pytest.raises(Refused) as raised:
        register(spec(tmp_path), parts.POOL)
    assert "127.0.0.1:1/api" in raised.value.text
    assert "s3cret" not in raised.value.text


def test_a_key_that_a_server_quotes_is_not_repeated(echoing: str, tmp_path: Path) -> None:
    key = temporary_settings({PREFECT_API_AUTH_STRING: f"me:{KEY}"})
    with parts.settings_of(None, f"{echoing}/api"), key, pytest.raises(Refused, match="status 401") as raised:
        register(spec(tmp_path), parts.POOL)
    assert base64.b64encode(f"me:{KEY}".encode()).decode()[4:-4] not in raised.value.text


def test_a_locked_database_of_prefects_is_a_finding_in_time(server: parts.Server, worker: int, tmp_path: Path) -> None:
    assert worker
    with parts.client_of(server) as client:
        parts.wait_for_pool(client)
        (file,) = server.home.glob("*.db")
        locked = sqlite3.connect(file, isolation_level=None)
        locked.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        try:
            with pytest.raises(Retryable, match="something else may hold its database"):
                register(spec(tmp_path, name="locked"), parts.POOL, patience=1)
            assert time.monotonic() - began < 60
        finally:
            locked.execute("ROLLBACK")
            locked.close()
        assert register(spec(tmp_path, name="locked"), parts.POOL).id


def test_what_belongs_to_a_group_goes_when_no_file_is_given_for_it_and_nothing_else_does(
    server: parts.Server, worker: int, tmp_path: Path
) -> None:
    assert worker
    with parts.client_of(server) as client:
        parts.wait_for_pool(client)
        files = {name: tmp_path / f"{name}.yaml" for name in ("left", "gone", "other")}
        for name, file in files.items():
            file.write_text(json.dumps(spec(tmp_path, name=name).model_dump(mode="json")))
        environ = {"PREFECT_API_URL": server.url, "PREFECT_HOME": str(server.home)}

        def said(*words: str, code: int = 0) -> str:
            done = deliver(tmp_path / "home", "register", *words, **environ)
            assert done.returncode == code, done.stderr
            return done.stdout + done.stderr

        said(str(files["left"]), str(files["gone"]), "--group", "mine", "--tag", "team-a", "--description", "For chat.")
        said(str(files["other"]), "--group", "theirs")
        made = client.read_deployment_by_name("deliver/left")
        assert set(made.tags) == {"model-delivery", "group:mine", "team-a"}
        assert str(made.description).startswith("For chat.")
        words = (str(files["left"]), "--group", "mine", "--remove", "--tag", "team-a", "--description", "For chat.")
        for dry in (("--dry-run",), ()):
            shown = said(*words, *dry)
            assert "deliver/left: unchanged" in shown
            assert "deliver/gone: removed" in shown
            assert ("deliver/gone" in names(client)) == bool(dry)
        assert {"deliver/left", "deliver/other"} <= names(client)
        said(str(files["left"]), "--remove", code=2)
        said(str(files["left"]), str(files["left"]), code=2)


def names(client: SyncPrefectClient) -> set[str]:
    found = client.read_deployments()
    return {f"deliver/{one.name}" for one in found if one.entrypoint == registration.ENTRYPOINT}
