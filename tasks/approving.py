"""Approval: a person says whether a release may have traffic, on the run's page or by
`deliver promote`. Nothing is held for them meanwhile: no lease, no slot, no process.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from pydantic import Field, ValidationError

from model_delivery.base import Duration, Finding, Progress, Refused, report
from model_delivery.places.opening import Location
from model_delivery.run import approval, protocol
from model_delivery.run.protocol import Admission
from model_delivery.run.record import Approval, Candidate
from model_delivery.run.rules import Answer
from model_delivery.run.session import current, opened
from model_delivery.spec import DeliverySpec
from model_delivery.tasks import events
from model_delivery.tasks.events import Event
from model_delivery.tasks.step import flow_run, step
from model_delivery.values import Stage


class Decision(RunInput):
    """The form on the page of a run that waits."""

    decision: Literal["promote", "refuse"]
    by: Annotated[str, Field(title="Who says so", min_length=1, max_length=100)]
    reason: Annotated[str, Field(title="Why", max_length=1000)] = ""


def approved(stage: Stage, within: Duration | None) -> bool:
    """May the stage begin? Before the first that gives the candidate traffic a person is
    asked, where the spec wants it: they have ``within``.
    """
    asked = current().candidate.approval
    if within is None or not stage.watched or (asked and asked.promote):
        return True
    return approve(stage, within)


@step("approve", per_stage=True)
def approve(stage: Stage, within: Duration) -> bool:
    """Ask a person, once; False while they have not answered."""
    session = current()
    free, candidate = approval.approved(session, within.seconds), session.candidate
    if not free and candidate.approval is not None:
        events.tell(Event.AWAITING, session.delivery, candidate.release)
        until = datetime.fromtimestamp(candidate.approval.until, tz=UTC).isoformat(timespec="seconds")
        report(Progress("approve", f"{candidate.release} waits until {until} for a person, before {stage.phase}"))
    return free


@step("decide")
def decide(by: str, reason: str, *, promote: bool) -> Admission:
    """Note what a person said of the release that waits; a no withdraws it."""
    session = current()
    said = Approval(0, promote, by, reason)
    approval.decide(session, said)
    candidate = session.candidate
    if promote:
        session.request = candidate.request
        return Admission(Answer.GOES_ON, candidate.release)
    no = approval.not_approved(said)
    protocol.refuse(session, no)
    events.tell(Event.REFUSED, session.delivery, candidate.release, no)
    return Admission(Answer.REFUSED, candidate.release)


def answered(spec: DeliverySpec, request: str, candidate: Candidate) -> bool:
    """Suspend the run until a person has answered on its page, and note what they said.
    False where no page can ask: this is no run of a deployment.
    """
    context = flow_run()
    if context is None or context.flow_run is None or context.flow_run.deployment_id is None:
        return False
    decision = _asked(spec.name, candidate)
    key = spec.target.key()
    with opened(Location.of(key).open(), spec.name, key, request=request) as session:
        said = Approval(0, decision.decision == "promote", decision.by, decision.reason)
        approval.decide(session, said)
    return True


def _asked(name: str, candidate: Candidate) -> Decision:
    figures = "\n".join(f"- {key}: {value:,.4g}" for key, value in candidate.figures.items())
    text = f"Release `{candidate.release}` of **{name}** has passed its gates, and has no traffic yet."
    text += f"\n\n{figures}\n\nReport: `{candidate.report}`" if figures else ""
    form: Any = Decision.with_initial_data(description=text)
    until = candidate.approval.until if candidate.approval else 0.0
    try:
        decision = suspend_flow_run(
            wait_for_input=form,
            timeout=max(1, round(until - time.time())),
            key=f"approve-{candidate.release}-{candidate.attempt}",
        )
    except ValidationError:
        what, fix = "the run was resumed without an answer", f"`deliver promote {name}` answers, or run it again"
        raise Refused(Finding("release.no-answer", what, "its form was not filled in", fix)) from None
    return Decision.model_validate(decision.model_dump())
