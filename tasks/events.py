"""What happens to a release, as Prefect events: automations act on them. Outside a run
nothing is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from model_delivery.base import Trouble, scrub
from model_delivery.tasks.step import flow_run


class Event(StrEnum):
    """The names that automations match (manifests/prefect/automations.yaml)."""

    PROPOSED = "model-delivery.release.proposed"
    AWAITING = "model-delivery.release.awaiting-approval"
    REFUSED = "model-delivery.release.refused"
    PROMOTED = "model-delivery.release.promoted"
    ROLLED_BACK = "model-delivery.release.rolled-back"
    WEDGED = "model-delivery.engine.wedged"
    DRIFT = "model-delivery.drift.found"


def tell(
    event: Event,
    delivery: str,
    release: str | None,
    trouble: Trouble | None = None,
    *,
    facts: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
) -> None:
    """``trouble``: why; the payload has the first finding's ``code``, ``what``, ``why``
    and ``fix``, and ``exit_code``; the resource has the code as a label. ``facts`` and
    ``labels`` are added to the payload and to the resource.
    """
    context = flow_run()
    if context is None or context.flow_run is None:
        return
    from prefect.events import emit_event

    payload: dict[str, Any] = {"delivery": delivery, "release": release or "", **_scrubbed(facts or {})}
    resource = {"prefect.resource.id": f"model-delivery.delivery.{delivery}", "prefect.resource.name": delivery}
    resource |= labels or {}
    if trouble is not None:
        first = trouble.findings[0]
        said = {"code": first.code, "what": first.what, "why": first.why, "fix": first.fix}
        payload |= _scrubbed(said) | {"exit_code": str(trouble.exit_code)}
        resource["model-delivery.code"] = first.code
    run = {"prefect.resource.id": f"prefect.flow-run.{context.flow_run.id}", "prefect.resource.role": "flow-run"}
    emit_event(event=event.value, resource=resource, related=[run], payload=payload)


def _scrubbed(said: Mapping[str, Any]) -> dict[str, Any]:
    return {key: scrub(text) if isinstance(text, str) else [*map(scrub, text)] for key, text in said.items()}
