"""Back to a release that served before."""

from __future__ import annotations

from typing import Any

from prefect import flow

from model_delivery.targets import AnyKey
from model_delivery.tasks import delivering as do


@flow(name="rollback", flow_run_name="{name}", persist_result=False, log_prints=False)
def rollback(
    name: str, to: str | None = None, request: str | None = None, where: AnyKey | None = None
) -> dict[str, Any]:
    """Give all of the traffic back to release ``to`` (default: the previous one), which is started again where it no longer runs.

    ``where``: the target's kind, context and namespace; default: this host.
    Scheduled deliveries of the release that it leaves are held until another spec, or a request by hand. Returns an Outcome as plain JSON.
    """
    with do.rolling_back(name, request, where) as run:
        admission = do.choose(to)
        if admission.result != "candidate":
            return run.outcome(admission)
        with run.withdrawn_on_trouble():
            do.storage()
            do.fetch()
            for stage in run.stages():
                do.release(stage)
                do.ready(stage)
            do.promote()
        do.collect(do.ROLLBACK)
        return run.outcome(admission)
