"""What happens to a release, as Prefect events: automations act on them. Outside a run
nothing is told.
"""

from __future__ import annotations

from enum import StrEnum

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


def tell(event: Event, delivery: str, release: str | None, trouble: Trouble | None = None) -> None:
    """``trouble``: why; the payload has the first finding's ``code``, ``what``, ``why``
    and ``fix``, and ``exit_code``; the resource has the code as a label.
    """
    context = flow_run()
    if context is None or context.flow_run is None:
        return
    from prefect.events import emit_event

    payload = {"delivery": delivery, "release": release or ""}
    resource = {"prefect.resource.id": f"model-delivery.delivery.{delivery}", "prefect.resource.name": delivery}
    if trouble is not None:
        first = trouble.findings[0]
        said = {"code": first.code, "what": first.what, "why": first.why, "fix": first.fix}
        payload |= {key: scrub(text) for key, text in said.items()} | {"exit_code": str(trouble.exit_code)}
        resource["model-delivery.code"] = first.code
    run = {"prefect.resource.id": f"prefect.flow-run.{context.flow_run.id}", "prefect.resource.role": "flow-run"}
    emit_event(event=event.value, resource=resource, related=[run], payload=payload)
