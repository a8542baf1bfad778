"""Approval: a person says whether a release may have traffic, on the run's page or by
`deliver promote`. Nothing is held for them meanwhile: no lease, no slot, no process.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any, Literal
from uuid import UUID

import httpx
from prefect.exceptions import FlowPauseTimeout, NotPausedError, ObjectNotFound
from prefect.flow_runs import resume_flow_run, suspend_flow_run
from prefect.input import RunInput
from prefect.settings import PREFECT_API_URL
from pydantic import Field, ValidationError

from model_delivery.base import Duration, Finding, Progress, Refused, moment, report
from model_delivery.places.opening import Location
from model_delivery.run import approval, protocol, rules
from model_delivery.run.book import read_or_new
from model_delivery.run.protocol import Admission
from model_delivery.run.record import Approval, Candidate, Record
from model_delivery.run.rules import Answer
from model_delivery.run.session import current, opened
from model_delivery.spec import DeliverySpec
from model_delivery.tasks import events
from model_delivery.tasks.events import Event
from model_delivery.tasks.running import page
from model_delivery.tasks.step import flow_run, step
from model_delivery.values import Stage
from model_delivery.values.metrics import FIGURES, shown


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
        until = moment(candidate.approval.until)
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


def answered(spec: DeliverySpec, request: str) -> bool:
    """Where this run has asked a person: suspend it until they have answered on its page,
    and note what they said. False where nobody is asked, or no page can ask: this is no
    run of a deployment.
    """
    context, key = flow_run(), spec.target.key()
    paged = context is not None and context.flow_run is not None and context.flow_run.deployment_id is not None
    if spec.approval != "manual" or not paged:
        return False
    with page(spec.name):
        place = Location.of(key).open()
        record = read_or_new(place, spec.name, key).record
        candidate = record.candidate
        if candidate is None or candidate.request != request or not rules.unanswered(record):
            return False
        decision = _asked(spec.name, record, candidate)
        with opened(place, spec.name, key, request=request) as session:
            approval.decide(session, Approval(0, decision.decision == "promote", decision.by, decision.reason))
    return True


def _question(name: str, record: Record, candidate: Candidate, until: float) -> str:
    """What the form says above its fields."""
    throughput, serving = candidate.gates.throughput, record.serving
    bounds = dict(throughput.slo.bounds()) if throughput else {}
    before = next((e.figures for e in reversed(record.ended) if e.release == serving and e.exit_code == 0), {})
    text = f"Release `{candidate.release}` of **{name}** has passed its gates, and has no traffic yet; "
    text += f"`{serving}` serves. " if serving else "nothing serves. "
    text += f"Answer until {moment(until)}: no answer is a no.\n"
    for key, value in candidate.figures.items():
        if figure := FIGURES.get(key):
            unit = figure.metric.unit
            text += f"\n- {figure.title}: {shown(value, unit)}"
            text += f", {figure.words(bounds[figure])} wanted" if figure in bounds else ""
            text += f" (what serves: {shown(before[key], unit)})" if key in before else ""
    return text + (f"\n\nReport: `{candidate.report}`" if candidate.report else "")


@contextmanager
def resumed_after(*, by: str, reason: str, promote: bool) -> Iterator[list[str]]:
    """The runs that asked, and are suspended, whose requests are in the list at the end:
    each is told what was said here, and ends by itself. A request that is no run, and a
    run that waits no more, is left.
    """
    asked = list[str]()
    try:
        yield asked
    finally:
        for request in asked if PREFECT_API_URL.value() else ():
            with suppress(ValueError, httpx.HTTPError, ObjectNotFound, FlowPauseTimeout, NotPausedError):
                said = {"decision": "promote" if promote else "refuse", "by": by, "reason": reason}
                resume_flow_run(UUID(request), run_input=said)


def _asked(name: str, record: Record, candidate: Candidate) -> Decision:
    until = candidate.approval.until if candidate.approval else 0.0
    form: Any = Decision.with_initial_data(description=_question(name, record, candidate, until))
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
