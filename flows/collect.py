"""What is due is removed, on one page."""

from __future__ import annotations

from typing import Any

from prefect import flow

from model_delivery.places.opening import HERE, Location
from model_delivery.tasks import collecting as do
from model_delivery.tasks.artifacts import completed
from model_delivery.tasks.running import page


@flow(name="collect", flow_run_name="{where}", persist_result=False, log_prints=False)
def collect(where: Location = HERE, dry_run: bool = False) -> dict[str, Any]:
    """Remove what is due of each delivery of this host, or of the namespace ``where``:
    what nobody approved in time, a standby whose time is over, steps of ended attempts,
    releases that no rollback can want; on a host also models that no release needs.

    A delivery that a run is at work on is left alone, and so is every claim. ``dry_run``:
    only say what would go.
    """
    with page(str(where)):
        tidied = do.deliveries(where, dry_run)
        outcome = do.tell(tidied, do.models_of_host(where, dry_run), dry_run)
        return completed(outcome, outcome["result"])
