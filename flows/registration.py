"""One deployment for each spec, so that ``prefect deployment run 'deliver/NAME'``
delivers it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from prefect.utilities.callables import parameter_schema
from pydantic import ValidationError

from model_delivery.base import NAME, BadInput, Finding, Refused, did_you_mean, problems
from model_delivery.flows import older
from model_delivery.flows.deliver import deliver
from model_delivery.flows.server import HEARTBEAT_SECONDS, TAG, asked
from model_delivery.spec import DeliverySpec
from model_delivery.values.resources import difference

ENTRYPOINT = "model_delivery.flows.deliver.deliver"
GROUP, SLUG = "group:", "spec"
EACH = "*"
PATIENCE = 45.0  # seconds


@dataclass(frozen=True)
class Wanted:
    """How specs are registered: the work pool that runs them, tags, a description of the
    service, and the group that they belong to (empty: none).
    """

    pool: str = "local"
    tags: tuple[str, ...] = ()
    description: str = ""
    group: str = ""


@dataclass(frozen=True)
class Proposal:
    """What registering ``name`` comes to: ``fields`` of its deployment and, of its
    schedules, ours. ``differs``: lines for people, None where it is new. ``paused``:
    somebody paused it, or our schedule, in Prefect, and it stays so. What else a person
    set in Prefect stays too.
    """

    name: str
    fields: dict[str, Any]
    schedules: tuple[DeploymentScheduleCreate, ...]
    differs: tuple[str, ...] | None
    paused: bool = False

    @property
    def action(self) -> str:
        return "new" if self.differs is None else "changed" if self.differs else "unchanged"


@dataclass(frozen=True)
class Registration:
    """``gone``: deployments of the group that no spec is left of. ``older``: others on
    the server that an older version made, and that cannot run any more.
    """

    proposals: tuple[Proposal, ...]
    gone: tuple[str, ...] = ()
    older: tuple[str, ...] = ()


def propose(specs: Sequence[DeliverySpec], wanted: Wanted, patience: float = PATIENCE) -> Registration:
    """What `register` would change. Refused when no server answers within 5 s, or when
    the pool cannot run a spec; Retryable when it has failed for ``patience`` seconds.
    """

    def look(client: SyncPrefectClient) -> Registration:
        for spec in specs:
            _check_pool(client, wanted.pool, spec)
        proposals = tuple(_proposal(client, spec, wanted) for spec in specs)
        every = list(_every(client))
        names = {proposal.name for proposal in proposals}
        gone = {d.name for d in every if wanted.group and f"{GROUP}{wanted.group}" in d.tags and _ours(d)} - names
        old = {f"{str(d.entrypoint).split('.')[-1]}/{d.name}" for d in every if d.entrypoint in older.ENTRYPOINTS}
        return Registration(proposals, tuple(sorted(gone)), tuple(sorted(old)))

    return asked(look, patience)


def register(proposal: Proposal, patience: float = PATIENCE) -> str:
    """Make, or bring up to date, the deployment ``deliver/NAME``; returns its id. Its
    parameter is the whole spec.
    """

    def put(client: SyncPrefectClient) -> str:
        schema = parameter_schema(deliver).model_dump_for_openapi()
        fields, before = {**proposal.fields, "parameter_openapi_schema": schema}, _read(client, proposal.name)
        if before is None:
            flow = client.create_flow(deliver)
            made = client.create_deployment(
                flow_id=flow, name=proposal.name, schedules=list(proposal.schedules), **fields
            )
            return str(made)
        client.update_deployment(before.id, DeploymentUpdate(**fields))
        _reschedule(client, before, proposal.schedules)
        return str(before.id)

    return asked(put, patience)


def _reschedule(
    client: SyncPrefectClient, before: DeploymentResponse, wanted: Sequence[DeploymentScheduleCreate]
) -> None:
    """Our schedule becomes the spec's; others are a person's."""
    there = _ours_of(before)
    for schedule in there[len(wanted) :]:
        client.delete_deployment_schedule(before.id, schedule.id)
    for new, old in zip(wanted, there, strict=False):
        if old.schedule != new.schedule:
            client.update_deployment_schedule(before.id, old.id, schedule=new.schedule)
    if new_ones := wanted[len(there) :]:
        client.create_deployment_schedules(before.id, list(new_ones))


def _ours_of(deployment: DeploymentResponse) -> list[DeploymentSchedule]:
    return [one for one in deployment.schedules if one.slug == SLUG]


def remove(name: str, patience: float = PATIENCE) -> None:
    """The deployment ``deliver/NAME`` goes; the service that it delivered stays as it
    is.
    """

    def delete(client: SyncPrefectClient) -> None:
        if (found := _read(client, name)) is not None and _ours(found):
            client.delete_deployment(found.id)

    asked(delete, patience)


@dataclass(frozen=True)
class Known:
    """A registered delivery, as its deployment ``deliver/NAME`` has it."""

    name: str
    pool: str
    given: Any

    def spec(self) -> DeliverySpec:
        """BadInput where this version cannot read it."""
        try:
            return DeliverySpec.model_validate(self.given)
        except ValidationError as error:
            what, why = f"the spec of deliver/{self.name} cannot be read", "; ".join(problems(error)[:3])
            fix = "correct its file, then `deliver register FILE`"
            raise BadInput(Finding("prefect.bad-spec", what, why, fix)) from None


def every(pool: str | None) -> tuple[Known, ...]:
    """Each registered delivery, of ``pool`` where that is given."""

    def look(client: SyncPrefectClient) -> tuple[Known, ...]:
        found = (_known(one) for one in _every(client) if _registered(one))
        return tuple(one for one in found if pool in (None, one.pool))

    return asked(look, PATIENCE)


def known(name: str) -> Known:
    """The registered delivery ``name``. BadInput where it is not registered."""

    def look(client: SyncPrefectClient) -> Known:
        if re.fullmatch(NAME, name) and (one := _read(client, name)) is not None and _registered(one):
            return _known(one)
        names = [one.name for one in _every(client) if _registered(one)]
        why = did_you_mean(name, names) or f"registered are: {', '.join(sorted(names)[:20]) or 'none'}"
        what, fix = f"no delivery {name!r:.60} is registered", "`deliver register FILE` with its spec"
        raise BadInput(Finding("prefect.not-registered", what, why, fix))

    return asked(look, PATIENCE)


def _registered(deployment: DeploymentResponse) -> bool:
    """The generic one has no spec."""
    return _ours(deployment) and "spec" in deployment.parameters


def _known(deployment: DeploymentResponse) -> Known:
    return Known(deployment.name, deployment.work_pool_name or "", deployment.parameters["spec"])


def _proposal(client: SyncPrefectClient, spec: DeliverySpec, wanted: Wanted) -> Proposal:
    before = _read(client, spec.name)
    ours = _ours_of(before) if before else []
    paused = before is not None and (before.paused or any(not schedule.active for schedule in ours))
    about = wanted.description or f"Delivers {spec.name}."
    group = (f"{GROUP}{wanted.group}",) if wanted.group else ()
    fields: dict[str, Any] = {
        "parameters": {**(before.parameters if before else {}), "spec": spec.model_dump(mode="json")},
        "enforce_parameter_schema": True,
        "work_pool_name": wanted.pool,
        "entrypoint": ENTRYPOINT,
        "pull_steps": [],
        "job_variables": _alive(before.job_variables if before else {}),
        "paused": before is not None and before.paused,
        "tags": [TAG, *group, *wanted.tags],
        "description": f"{about} Made by `deliver register`; register again after the spec has changed.",
    }
    schedules = _schedules(spec, active=not paused)
    if before is None:
        return Proposal(spec.name, fields, schedules, None)
    differs = tuple(difference(_shown(vars(before), ours), _shown(fields, schedules)))
    return Proposal(spec.name, fields, schedules, differs, paused and spec.schedule is not None)


def _alive(variables: dict[str, Any]) -> dict[str, Any]:
    """With the pace at which a run says that it lives."""
    pace = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS)}
    return {**variables, "env": {**(variables.get("env") or {}), **pace}}


def _shown(fields: dict[str, Any], schedules: Sequence[Any]) -> dict[str, Any]:
    """What people compare of a deployment."""
    crons = [f"{s.schedule.cron} {s.schedule.timezone}" for s in schedules if isinstance(s.schedule, CronSchedule)]
    return {
        "spec": fields["parameters"].get("spec"),
        "schedule": ", ".join(crons) or None,
        "pool": fields["work_pool_name"],
        "tags": sorted(fields["tags"]),
        "description": fields["description"],
        "entrypoint": fields["entrypoint"],
    }


def _read(client: SyncPrefectClient, name: str) -> DeploymentResponse | None:
    try:
        return client.read_deployment_by_name(f"{deliver.name}/{name}")
    except ObjectNotFound:
        return None


def _ours(deployment: DeploymentResponse) -> bool:
    return deployment.entrypoint == ENTRYPOINT


def _every(client: SyncPrefectClient) -> Iterator[DeploymentResponse]:
    seen = 0
    while page := client.read_deployments(offset=seen):
        seen += len(page)
        yield from page


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


def _schedules(spec: DeliverySpec, *, active: bool) -> tuple[DeploymentScheduleCreate, ...]:
    if spec.schedule is None:
        return ()
    try:
        cron = CronSchedule(cron=spec.schedule.cron, timezone=spec.schedule.timezone)
    except ValidationError as error:
        what, why = "Prefect refuses the schedule", "; ".join(problems(error))
        raise BadInput(Finding("prefect.schedule", what, why, "correct schedule in the spec")) from None
    return (DeploymentScheduleCreate(schedule=cron, active=active, slug=SLUG, parameters={"scheduled": True}),)
