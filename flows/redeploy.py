"""The redeploy of what is registered: the DAG of ``deliver``, with the spec that the
server has.
"""

from __future__ import annotations

from typing import Any

from prefect import flow

from model_delivery.flows.deliver import deliver
from model_delivery.flows.registration import known
from model_delivery.tasks.cancelling import mark, withdraw
from model_delivery.tasks.running import page


@flow(
    name="redeploy",
    flow_run_name="{name}",
    persist_result=False,
    log_prints=False,
    on_cancellation=[withdraw],
)
def redeploy(name: str, request: str | None = None) -> dict[str, Any]:
    """Deliver the spec that is registered as ``deliver/NAME``, as its schedule does: what
    is unchanged stays, what a gate refused or a rollback left is held until it changes.

    ``request``: as of ``deliver``. Returns an Outcome as plain JSON.
    """
    with page(name):
        spec = known(name).spec()
        mark(spec)
    return deliver.fn(spec, request, scheduled=True)
