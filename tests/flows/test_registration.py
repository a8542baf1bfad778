"""One deployment for each spec: made once, brought up to date, refused where it could not
run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.schedules import CronSchedule

from model_delivery.base import Permanent, Refused
from model_delivery.flows.registration import register
from model_delivery.spec import DeliverySpec, parse_spec
from tests.parts import prefect_server as parts


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
        assert len(client.read_deployments()) == len({deployment.name for deployment in client.read_deployments()})


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
