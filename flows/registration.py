"""One deployment for each spec, so that ``prefect deployment run 'deliver/NAME'``
delivers it.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

import httpx
import stamina
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.utilities.callables import parameter_schema
from pydantic import ValidationError

from model_delivery.base import BadInput, Finding, Refused, Retryable, problems
from model_delivery.flows import older
from model_delivery.flows.deliver import deliver

if TYPE_CHECKING:
    from model_delivery.spec import DeliverySpec

ENTRYPOINT = "model_delivery.flows.deliver.deliver"
ANSWER_SECONDS = 5.0
CALL_SECONDS = 15.0  # a server whose database is locked answers 503 after 10
SET_URL = "prefect config set PREFECT_API_URL"
START = (
    "start one with `prefect server start` and a worker with `prefect worker start --pool local --type process`, "
    f"and name the server: `{SET_URL}={{}}`"
)


@dataclass(frozen=True)
class Registered:
    """``older``: others on the server that an older version made, and that cannot run any
    more. ``paused``: somebody paused the schedule in Prefect, and it stays so.
    """

    id: str
    older: tuple[str, ...]
    paused: bool = False


def register(spec: DeliverySpec, pool: str, patience: float = 45.0) -> Registered:
    """Make, or bring up to date, the deployment ``deliver/<spec.name>`` in the work pool
    ``pool``.

    Its parameter is the whole spec. Refused when no server answers within 5 s, or when
    the pool cannot run it; Retryable when it has failed for ``patience`` seconds.
    """
    tries = stamina.RetryingCaller(attempts=None, timeout=patience, wait_initial=0.5, wait_max=5)
    return tries.on(Retryable)(_register, spec, pool)


def _register(spec: DeliverySpec, pool: str) -> Registered:
    with _one_try(), server() as client:
        _check_pool(client, pool, spec)
        paused = _is_paused(client, spec.name)
        made = client.create_deployment(
            flow_id=client.create_flow(deliver),
            name=spec.name,
            parameters={"spec": spec.model_dump(mode="json")},
            parameter_openapi_schema=parameter_schema(deliver).model_dump_for_openapi(),
            enforce_parameter_schema=True,
            schedules=_schedules(spec, active=not paused),
            work_pool_name=pool,
            entrypoint=ENTRYPOINT,
            pull_steps=[],
            description=f"Delivers {spec.name}: made by `deliver register`; register again after the spec has changed.",
        )
        return Registered(str(made), _older(client), paused and spec.schedule is not None)


def _is_paused(client: SyncPrefectClient, name: str) -> bool:
    try:
        schedules = client.read_deployment_by_name(f"{deliver.name}/{name}").schedules
    except ObjectNotFound:
        return False
    return any(not schedule.active for schedule in schedules)


def _older(client: SyncPrefectClient) -> tuple[str, ...]:
    names, seen = list[str](), 0
    while page := client.read_deployments(offset=seen):
        seen += len(page)
        names += [f"{d.entrypoint.split('.')[-1]}/{d.name}" for d in page if d.entrypoint in older.ENTRYPOINTS]
    return tuple(sorted(names))


@contextmanager
def server() -> Iterator[SyncPrefectClient]:
    """A client of the server that Prefect's settings name.

    Refused, with what to start, when none is named or none answers within 5 s; Retryable
    when a call to it fails within the block.
    """
    url, shown = _address()
    try:
        with _one_try(), get_client(httpx_settings={"timeout": ANSWER_SECONDS}, sync_client=True) as client:
            client.hello().json()
    except (httpx.HTTPError, ValueError) as error:
        raise _no_server(shown, error) from None
    try:
        with get_client(httpx_settings={"timeout": CALL_SECONDS}, sync_client=True) as client:
            yield client
    except httpx.HTTPError as error:
        asked = getattr(error, "_request", None)
        if asked is None or (asked.url.host, asked.url.port) != (url.host, url.port):
            raise
        what, why = f"the Prefect server at {shown} did not do what it was asked", _said(error)
        fix = "read its log: something else may hold its database; then run again"
        raise Retryable(Finding("prefect.failed", what, why, fix)) from None


def _address() -> tuple[httpx.URL, str]:
    """PREFECT_API_URL, and as it may be shown: without a password."""
    url = PREFECT_API_URL.value()
    if url is None:
        why = "PREFECT_API_URL is set neither in the environment nor in the profile"
        fix = START.format("http://127.0.0.1:4200/api")
        raise Refused(Finding("prefect.no-address", "no Prefect server is named", why, fix))
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL:
        address = httpx.URL("")
    if address.scheme not in ("http", "https") or not address.host:
        what, why = "PREFECT_API_URL is no address of a Prefect server", "it has no http:// or https://, or no host"
        raise Refused(Finding("prefect.no-address", what, why, f"{SET_URL}=http://HOST:4200/api"))
    return address, str(address.copy_with(userinfo=b"")).rstrip("/")


def _no_server(shown: str, error: Exception) -> Refused:
    status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None
    if isinstance(error, ValueError) or status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
        what, why = f"what answers at {shown} is no Prefect API", "the API's address ends in /api"
        fix = f"{SET_URL}={shown.partition('/api')[0]}/api"
        return Refused(Finding("prefect.no-api", what, why, fix))
    if status is not None:
        what, fix = f"the Prefect server at {shown} refused the call", "check PREFECT_API_URL and its key"
        return Refused(Finding("prefect.refused", what, _said(error), fix))
    what, why = f"no Prefect server answers at {shown}", _said(error)
    http = "SSL" in why and shown.startswith("https")
    fix = f"where it speaks plain http: {SET_URL}=http{shown[5:]}" if http else START.format(shown)
    return Refused(Finding("prefect.no-answer", what, why, fix))


def _said(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"status {error.response.status_code}: {error.response.text[:300]}"
    return str(error) or type(error).__name__


def _one_try() -> AbstractContextManager[object]:
    """For each call: Prefect's client goes on for minutes."""
    return temporary_settings(updates={PREFECT_CLIENT_MAX_RETRIES: 0})


def _check_pool(client: SyncPrefectClient, pool: str, spec: DeliverySpec) -> None:
    """A process pool's workers have us installed; of the others' images only those that
    the pool's template names may.
    """
    fix = f"`prefect worker start --pool {shlex.quote(pool)} --type process` makes it, and works for it"
    try:
        found = client.read_work_pool(pool)
    except ObjectNotFound:
        what = f"the Prefect server has no work pool {pool}"
        known = ", ".join(sorted(found.name for found in client.read_work_pools())) or "none"
        raise Refused(Finding("prefect.no-pool", what, f"it has: {known}", fix)) from None
    fields = found.base_job_template.get("variables", {}).get("properties", {})
    own_image = spec.target.key().place == "cluster" and fields.get("image", {}).get("default")
    if found.type != "process" and not own_image:
        what, why = f"the work pool {pool} cannot run a delivery", f"its type is {found.type}"
        fix = "name a pool of type process with --pool; for a cluster another will do whose template's image has us"
        raise Refused(Finding("prefect.pool-type", what, why, fix))


def _schedules(spec: DeliverySpec, *, active: bool) -> list[DeploymentScheduleCreate]:
    if spec.schedule is None:
        return []
    try:
        cron = CronSchedule(cron=spec.schedule.cron, timezone=spec.schedule.timezone)
    except ValidationError as error:
        what, why = "Prefect refuses the schedule", "; ".join(problems(error))
        raise BadInput(Finding("prefect.schedule", what, why, "correct schedule in the spec")) from None
    return [DeploymentScheduleCreate(schedule=cron, active=active, slug="spec", parameters={"scheduled": True})]
