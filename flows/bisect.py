"""Which change of a refused release did it?"""

from __future__ import annotations

from typing import Any

from prefect import flow

from model_delivery.base import Trouble
from model_delivery.run.bisecting import Search
from model_delivery.spec import DeliverySpec
from model_delivery.tasks import artifacts, bisecting, gates
from model_delivery.tasks import delivering as do
from model_delivery.tasks.cancelling import withdraw
from model_delivery.tasks.running import Run, delivering
from model_delivery.values import Lock


@flow(name="bisect", flow_run_name="{spec.name}", persist_result=False, log_prints=False, on_cancellation=[withdraw])
def bisect(spec: DeliverySpec, request: str | None = None) -> dict[str, Any]:
    """Search what of ``spec``, which a gate has refused, did it: dark releases with some
    of its changes, at most log2 + 1 of them, by the same gates.

    What serves goes on serving; nothing is promoted. Returns an Outcome as plain JSON.
    """
    with delivering(spec, request) as run:
        asked = run.session.request
        lock = do.resolve(spec)
        search = bisecting.suspects(spec, lock)
        while search.found is None:
            search = search.after(_passes(run, spec, lock, search, asked))
        return artifacts.completed(bisecting.cause(search, asked))


def _passes(run: Run, spec: DeliverySpec, lock: Lock, search: Search, asked: str) -> bool:
    if not bisecting.between(spec, lock, search, asked).answer.delivers:
        return True
    with run.withdrawn_on_trouble():
        try:
            do.storage()
            do.fetch()
            way = run.route()
            stage = bisecting.dark(way)
            do.release(stage, way)
            endpoint = do.ready(stage)
            smoke = gates.smoke(stage, endpoint)
            gates.verdict(stage, smoke, gates.throughput(stage, endpoint, smoke))
        except Trouble as trouble:
            if not bisecting.is_its_fault(trouble):
                raise
            bisecting.put_back(f"refused: {trouble.findings[0].what}")
            return False
        bisecting.put_back("it passed")
    return True
