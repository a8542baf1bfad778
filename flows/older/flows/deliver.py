"""``deliver`` as an older version's deployments call it."""

from __future__ import annotations

from typing import Any

from prefect import flow

from model_delivery.flows.older import ENTRYPOINTS, refusal


@flow(persist_result=False, validate_parameters=False)
def deliver(spec: Any = None, request: Any = None, scheduled: Any = None, take_over: Any = None) -> None:
    raise refusal(ENTRYPOINTS[0])
