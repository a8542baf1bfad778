"""A person's answer to a release that waits for an approval."""

from __future__ import annotations

from typing import Any

from prefect import flow

from model_delivery.flows.deliver import stages
from model_delivery.places.opening import Location
from model_delivery.tasks import delivering as do
from model_delivery.tasks.approving import decide, resumed_after
from model_delivery.tasks.cancelling import withdraw
from model_delivery.tasks.running import standing


@flow(name="promote", flow_run_name="{name}", persist_result=False, log_prints=False, on_cancellation=[withdraw])
def promote(
    name: str, by: str, reason: str = "", refuse: bool = False, where: Location | None = None
) -> dict[str, Any]:
    """Let the release of ``name`` that waits have its traffic, or refuse it.

    ``by``: who says so, and ``reason`` why; both are recorded. ``where``: context and
    namespace of a cluster; default: this host. Returns an Outcome as plain JSON.
    """
    with resumed_after(by=by, reason=reason, promote=not refuse) as asked, standing(name, None, where) as run:
        waits = run.session.record.candidate
        admission = decide(by, reason, promote=not refuse)
        asked.extend([waits.request] if waits else [])
        if refuse:
            return run.outcome(admission)
        rollout = run.session.candidate.rollout
        with run.withdrawn_on_trouble():
            stages(run)
        do.collect(rollout)
        return run.outcome(admission)
