"""The redeploy of what is registered: the DAG of ``deliver``, with the spec that the
server has.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import FlowRun

from model_delivery.flows.deliver import deliver
from model_delivery.flows.registration import known
from model_delivery.tasks.cancelling import withdraw
from model_delivery.tasks.delivering import page


def withdraw_registered(flow: Any, flow_run: FlowRun, state: Any) -> None:
    """As after a run of ``deliver/NAME``."""
    (found,) = known(flow_run.parameters["name"])
    withdraw(flow, flow_run.model_copy(update={"parameters": {**flow_run.parameters, "spec": found.given}}), state)


@flow(
    name="redeploy",
    flow_run_name="{name}",
    persist_result=False,
    log_prints=False,
    on_cancellation=[withdraw_registered],
)
def redeploy(name: str, request: str | None = None) -> dict[str, Any]:
    """Deliver the spec that is registered as ``deliver/NAME``, as its schedule does: what
    is unchanged stays, what a gate refused or a rollback left is held until it changes.

    ``request``: as of ``deliver``. Returns an Outcome as plain JSON.
    """
    with page(name):
        (found,) = known(name)
        spec = found.spec()
    return deliver.fn(spec, request, scheduled=True)
