"""Back to a release that served before."""

from __future__ import annotations

from typing import Any

from prefect import flow

from model_delivery.places.opening import Location
from model_delivery.tasks import delivering as do
from model_delivery.tasks.cancelling import withdraw
from model_delivery.tasks.running import standing


@flow(name="rollback", flow_run_name="{name}", persist_result=False, log_prints=False, on_cancellation=[withdraw])
def rollback(
    name: str, to: str | None = None, request: str | None = None, where: Location | None = None
) -> dict[str, Any]:
    """Give all of the traffic back to release ``to`` (default: the previous one), which
    is started again where it no longer runs.

    ``where``: context and namespace of a cluster; default: this host. Scheduled
    deliveries of the release that it leaves are held until another spec, or a request by
    hand. Returns an Outcome as plain JSON.
    """
    with standing(name, request, where) as run:
        admission = do.choose(to)
        if not admission.answer.delivers:
            return run.outcome(admission)
        with run.withdrawn_on_trouble():
            do.storage()
            do.fetch()
            way = run.route()
            for stage in way.stages:
                do.release(stage, way)
                do.ready(stage)
            do.promote()
        do.collect(do.ROLLBACK)
        return run.outcome(admission)
