"""Has anything changed under what serves, on one page."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from model_delivery.flows.registration import EACH, every, known
from model_delivery.tasks import drifting as do
from model_delivery.tasks.artifacts import completed
from model_delivery.tasks.running import page
from model_delivery.tasks.step import pool


def _named() -> str:
    name = flow_run.parameters["name"]
    return "every delivery" if name == EACH else str(name)


@flow(name="drift", flow_run_name=_named, persist_result=False, log_prints=False)
def drift(name: str = EACH) -> dict[str, Any]:
    """Has upstream moved past what the registered delivery ``name`` serves (a branch or
    tag is at another commit, an image's tag at another digest), or was what stands
    edited, added to or removed?

    ``*``: each that is registered for this run's work pool. Nothing is changed; the event
    ``model-delivery.drift.found`` tells each kind. What cannot be found out is unknown.
    """
    with page(name):
        found = do.look([(one.name, one.pool, one.spec) for one in (every(pool()) if name == EACH else (known(name),))])
        outcome = do.tell(found)
        return completed(outcome, outcome["result"])
