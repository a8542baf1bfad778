"""One deployment for each spec, so that ``prefect deployment run 'deliver/NAME'``
delivers it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.utilities.callables import parameter_schema

from model_delivery.base import Finding, Permanent, Refused
from model_delivery.flows import older
from model_delivery.flows.deliver import deliver

if TYPE_CHECKING:
    from model_delivery.spec import DeliverySpec

ENTRYPOINT = "model_delivery.flows.deliver.deliver"
ANSWER_SECONDS = 5.0


@dataclass(frozen=True)
class Registered:
    """``older``: others on the server that an older version made, and that cannot run any
    more.
    """

    id: str
    older: tuple[str, ...]


def register(spec: DeliverySpec, pool: str) -> Registered:
    """Make, or bring up to date, the deployment ``deliver/<spec.name>`` in the work pool
    ``pool``.

    Its parameter is the whole spec. Permanent when no server answers within 5 s, Refused
    when it has no such pool.
    """
    with server() as client:
        _check_pool(client, pool)
        made = client.create_deployment(
            flow_id=client.create_flow(deliver),
            name=spec.name,
            parameters={"spec": spec.model_dump(mode="json")},
            parameter_openapi_schema=parameter_schema(deliver).model_dump_for_openapi(),
            enforce_parameter_schema=True,
            schedules=_schedules(spec),
            work_pool_name=pool,
            entrypoint=ENTRYPOINT,
            pull_steps=[],
            description=f"Delivers {spec.name}: made by `deliver register`; register again after the spec has changed.",
        )
        return Registered(str(made), _older(client))


def _older(client: SyncPrefectClient) -> tuple[str, ...]:
    names, seen = list[str](), 0
    while page := client.read_deployments(offset=seen):
        seen += len(page)
        names += [f"{d.entrypoint.split('.')[-1]}/{d.name}" for d in page if d.entrypoint in older.ENTRYPOINTS]
    return tuple(sorted(names))


@contextmanager
def server() -> Iterator[SyncPrefectClient]:
    """A client of the server that Prefect's settings name.

    Permanent, with what to start, when none is named or none answers within 5 s.
    """
    url = PREFECT_API_URL.value()
    start = (
        "start one with `prefect server start` and a worker with `prefect worker start --pool local --type process`, "
        f"and name the server: `prefect config set PREFECT_API_URL={url or 'http://127.0.0.1:4200/api'}`"
    )
    if url is None:
        why = "PREFECT_API_URL is set neither in the environment nor in the profile"
        raise Permanent(Finding("prefect.no-address", "no Prefect server is named", why, start))
    with temporary_settings(updates={PREFECT_CLIENT_MAX_RETRIES: 0}):
        try:
            with get_client(httpx_settings={"timeout": ANSWER_SECONDS}, sync_client=True) as client:
                client.hello()
        except httpx.HTTPStatusError as error:
            what, fix = f"the Prefect server at {url} refused the call", "check PREFECT_API_URL and its key"
            raise Permanent(Finding("prefect.refused", what, str(error), fix)) from error
        except httpx.HTTPError as error:
            what, why = f"no Prefect server answers at {url}", str(error) or type(error).__name__
            raise Permanent(Finding("prefect.no-answer", what, why, start)) from error
    with get_client(sync_client=True) as client:
        yield client


def _check_pool(client: SyncPrefectClient, pool: str) -> None:
    try:
        client.read_work_pool(pool)
    except ObjectNotFound:
        what = f"the Prefect server has no work pool {pool}"
        known = ", ".join(sorted(found.name for found in client.read_work_pools())) or "none"
        fix = f"`prefect worker start --pool {pool} --type process` makes it, and works for it"
        raise Refused(Finding("prefect.no-pool", what, f"it has: {known}", fix)) from None


def _schedules(spec: DeliverySpec) -> list[DeploymentScheduleCreate]:
    if spec.schedule is None:
        return []
    cron = CronSchedule(cron=spec.schedule.cron, timezone=spec.schedule.timezone)
    return [DeploymentScheduleCreate(schedule=cron, active=True, slug="spec", parameters={"scheduled": True})]
