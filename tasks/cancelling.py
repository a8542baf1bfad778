"""What follows a cancelled run: Prefect calls it once the run's processes are gone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.logging.loggers import flow_run_logger

from model_delivery.base import Trouble, sink
from model_delivery.places.opening import Location
from model_delivery.run import protocol
from model_delivery.run.restore import read
from model_delivery.run.session import opened
from model_delivery.spec import DeliverySpec, parse_spec
from model_delivery.tasks.artifacts import publish_ending
from model_delivery.tasks.step import run_id

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun


MARK = "model-delivery.where"


def mark(spec: DeliverySpec) -> None:
    """Note on this run where it delivers, which its parameters do not say: the server may
    know another spec once the run is cancelled.
    """
    if (run := run_id()) is not None:
        with get_client(sync_client=True) as client:
            where = Location.of(spec.target.key()).model_dump_json(exclude_none=True)
            client.update_flow_run_labels(UUID(run), {MARK: where})


def _marked(run: FlowRun) -> dict[str, Any]:
    """Where nothing is noted, nothing had begun, or it is this host's."""
    with get_client(sync_client=True) as client:
        found: dict[str, Any] = json.loads(str(client.read_flow_run(run.id).labels.get(MARK, "{}")))
    return found


def withdraw(flow: Any, flow_run: FlowRun, state: Any) -> None:  # noqa: ARG001 - Prefect's names
    """The release that the run had on its way goes, with its steps; what serves keeps
    serving. It has the run's own request, so the run's lease is its own.
    """
    given, logger = flow_run.parameters, flow_run_logger(flow_run, flow)
    request = str(given.get("request") or flow_run.id)
    try:
        if "spec" in given:
            spec = parse_spec(given["spec"])
            name, where = spec.name, Location.of(spec.target.key())
        else:
            name, where = given["name"], Location.model_validate(given.get("where") or _marked(flow_run))
        place = where.open()
        if name not in place.deliveries():
            return  # nothing of it had begun
        key = read(place, name).record.target
        with sink(lambda news: logger.info("%s", news.line())), opened(place, name, key, request=request) as session:
            tried, serving = session.record.candidate, session.record.serving
            if protocol.cancel(session) and tried is not None:
                still = f"{serving} serves" if serving else "nothing serves"
                told = f"cancelled: release {tried.release} is withdrawn; {still}"
                logger.info("%s: %s", name, told)
                publish_ending(flow_run, name, told)
    except Trouble as trouble:
        logger.error("what was on its way may still run, and the next delivery ends it: %s", trouble)  # noqa: TRY400 - a page shows words
