"""The load test of what serves already, on one page."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from model_delivery.base import SecretRef
from model_delivery.places.opening import HERE, Location
from model_delivery.tasks import measuring as do
from model_delivery.tasks.artifacts import completed
from model_delivery.values import ThroughputGate

LOAD = ThroughputGate()


@flow(name="loadtest", flow_run_name="{service}", persist_result=False, log_prints=False)
def loadtest(
    service: Annotated[str, Field(pattern=r"^[^@?#\s]+$")],
    where: Location = HERE,
    load: ThroughputGate = LOAD,
    model: str | None = None,
    api_key: SecretRef | None = None,
) -> dict[str, Any]:
    """Load ``service``, a delivery's name or the address of any OpenAI-compatible server,
    and judge it: a Trouble with a gate's exit code where ``load.slo`` is not met.

    ``where``: context and namespace of the cluster that the delivery lives in; default:
    this host. ``load``: as ``gates.throughput`` of a spec. ``model``: default: the
    service's, or the first that the server lists. ``api_key`` names where the key is;
    default: the delivery's. Nothing is changed.
    """
    with do.measuring(service, where) as place:
        asked = do.find(place, service, load, model, api_key)
        outcome = do.verdict(asked, do.throughput(asked))
        return completed(outcome, "passed")
