"""The DAG of ``deliver``, on one page."""

from __future__ import annotations

from typing import Any

from prefect import flow

from model_delivery.base import Duration
from model_delivery.spec import DeliverySpec
from model_delivery.tasks import delivering as do
from model_delivery.tasks.approving import answered, approved
from model_delivery.tasks.cancelling import withdraw
from model_delivery.tasks.racing import race, races
from model_delivery.tasks.running import AWAITING, Run, delivering, named


@flow(name="deliver", flow_run_name="{spec.name}", persist_result=False, log_prints=False, on_cancellation=[withdraw])
def deliver(
    spec: DeliverySpec, request: str | None = None, scheduled: bool = False, take_over: bool = False
) -> dict[str, Any]:
    """Deliver ``spec``: a verified, load-tested, reversible service, or a Trouble that
    says exactly why not.

    ``request`` names this request: a rerun with the same name reports how it ended.
    ``scheduled`` runs respect a rollback's hold. ``take_over``: in a cluster, values that
    another field manager holds are taken from it. Returns an Outcome as plain JSON.
    """
    answered(spec, named(request))
    with delivering(spec, request, take_over=take_over) as run:
        lock = do.resolve(spec)
        admission = do.plan(spec, lock, scheduled)
        if not admission.answer.delivers:
            return run.outcome(do.answers(admission))
        with run.withdrawn_on_trouble():
            promoted = stages(run, spec.approval_timeout if spec.approval == "manual" else None)
        if promoted:
            do.collect(spec.rollout)
            return run.outcome(admission)
        waiting = run.outcome(AWAITING)
    if not answered(spec, run.session.request):
        return waiting
    again: dict[str, Any] = deliver.fn(spec, request, scheduled, take_over)
    return again


def stages(run: Run, approval: Duration | None = None) -> bool:
    """Bring the candidate on its way from where it is, as far as all of the traffic.
    False: a person is asked first, who has ``approval``.
    """
    do.storage()
    do.fetch()
    way = run.route()
    for stage in way.stages:
        if not approved(stage, approval):
            return False
        do.release(stage, way)
        endpoint = do.ready(stage)
        if races(stage):
            endpoint = race(stage, endpoint, way)
        if stage.gates:
            smoke = do.smoke(stage, endpoint)
            load = do.throughput(stage, endpoint, smoke)
            beside = do.control(stage) if do.breaks_a_figure(smoke, load) else None
            do.verdict(stage, smoke, load, beside)
        if stage.watched:
            do.watch(stage)
    do.promote()
    return True
