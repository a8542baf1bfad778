"""What follows a cancelled run: Prefect calls it once the run's processes are gone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect.logging.loggers import flow_run_logger

from model_delivery.base import Trouble, sink
from model_delivery.places.opening import Location
from model_delivery.run import protocol
from model_delivery.run.restore import read
from model_delivery.run.session import opened
from model_delivery.spec import parse_spec
from model_delivery.tasks.artifacts import publish_ending

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun


def withdraw(flow: Any, flow_run: FlowRun, state: Any) -> None:  # noqa: ARG001 - Prefect's names
    """The release that the run had on its way goes, with its steps; what serves keeps
    serving. It has the run's own request, so the run's lease is its own.
    """
    given, logger = flow_run.parameters, flow_run_logger(flow_run, flow)
    request = str(given.get("request") or flow_run.id)
    try:
        if "spec" in given:
            spec = parse_spec(given["spec"])
            name, key = spec.name, spec.target.key()
            place = Location.of(key).open()
        else:
            name = given["name"]
            place = Location(**(given.get("where") or {})).open()
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
