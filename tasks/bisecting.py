"""The steps of a search for what of a refused release did it."""

from __future__ import annotations

from typing import Any

from model_delivery.base import Finding, Refused, Trouble
from model_delivery.run import bisecting, protocol, rules
from model_delivery.run.bisecting import Search
from model_delivery.run.plan import Route
from model_delivery.run.protocol import Admission
from model_delivery.run.record import Outcome
from model_delivery.run.session import current
from model_delivery.spec import DeliverySpec
from model_delivery.tasks import artifacts
from model_delivery.tasks.step import step
from model_delivery.values import Lock, Stage, StageKind


@step("suspects")
def suspects(spec: DeliverySpec, lock: Lock) -> Search:
    """In what the refused release differs from what serves."""
    session = current()
    return bisecting.begun(session, spec, lock, session.clock.now())


@step("between")
def between(spec: DeliverySpec, lock: Lock, search: Search, request: str) -> Admission:
    """A release with the first half of what is left, as a request of its own."""
    session, held = current(), current().record.held
    session.request = f"{request}-bisect-{search.middle}-of-{len(search.changes)}"
    admission = protocol.admit(session, *bisecting.between(session, spec, lock, search), scheduled=False)
    session.write(rules.held_again(session.record, held))
    return admission


def dark(way: Route) -> Stage:
    """Where it is tried. Refused where there is no room beside what serves."""
    first = way.stages[0]
    if first.phase.kind is not StageKind.DARK:
        what, why = "nothing can be tried beside what serves", f"its way begins with: {first.phase.words}"
        raise Refused(Finding("release.no-room-beside", what, why, "give the place room for two releases"))
    return first


def is_its_fault(trouble: Trouble) -> bool:
    return rules.at_fault(current().candidate, trouble)


@step("put back")
def put_back(why: str) -> None:
    """What was tried goes, whatever came of it."""
    protocol.withdraw(current(), Outcome.TRIED, 1, f"bisect: {why}")


@step("cause")
def cause(search: Search, request: str) -> dict[str, Any]:
    """The change that did it, as an Outcome."""
    session = current()
    outcome = {
        "name": session.delivery,
        "result": f"the refusal came with {search.found}",
        "release": session.record.serving,
        "candidate": None,
        "url": session.url(session.world()),
        "report": None,
        "request": request,
    }
    lines = [f"{'→ ' if change == search.found else '  '}{change}" for change in search.changes]
    artifacts.publish_table("bisect", "Bisect", {"result": "one change did it"}, lines)
    return outcome
