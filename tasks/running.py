"""A run of a flow: the session of its request, while it is open, and what its page
shows.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from model_delivery.base import BadInput, Finding, Interrupted, Permanent, Refused, Trouble, moment, trouble
from model_delivery.places.opening import Location
from model_delivery.run import protocol, rules
from model_delivery.run.plan import Route, route
from model_delivery.run.preflight import preflight
from model_delivery.run.protocol import Admission
from model_delivery.run.restore import read
from model_delivery.run.rules import Answer
from model_delivery.run.session import Session, opened
from model_delivery.spec import DeliverySpec
from model_delivery.tasks import artifacts, events
from model_delivery.tasks.events import Event
from model_delivery.tasks.step import broken, in_order, run_id

REQUEST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}")
AWAITING = Admission(Answer.AWAITING, "")
NOT_OURS = ("lease.lost", "cluster.namespace-ending")  # nothing is ours to withdraw any more


class Run:
    """One request on one delivery, while its session is open."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def route(self) -> Route:
        """The candidate's stages, as the plan says them."""
        return route(self.session)

    @contextmanager
    def withdrawn_on_trouble(self) -> Iterator[None]:
        """Whatever is raised inside ends the candidate: what serves keeps serving."""
        try:
            yield
        except Interrupted:
            raise
        except Exception as error:
            bad = error if isinstance(error, Trouble) else Permanent(broken(error))
            if any(finding.code in NOT_OURS for finding in bad.findings):
                raise
            candidate = self.session.record.candidate
            try:
                protocol.refuse(self.session, bad)
            except Trouble as worse:
                raise Permanent(*bad.findings, *worse.findings) from error
            events.tell(Event.REFUSED, self.session.delivery, candidate.release if candidate else None, bad)
            raise

    def outcome(self, admission: Admission) -> dict[str, Any]:
        """What this request came to, as plain JSON. A reported failure is raised again,
        with its exit code.
        """
        session = self.session
        ended = admission.ended or session.record.answered(session.request)
        if ended is not None and ended.exit_code != 0:
            what = f"request {ended.request} has ended before: {ended.outcome}"
            fix = "make a new request to try again"
            raise trouble(ended.exit_code, Finding("release.request-ended", what, ended.message, fix))
        record, waits = session.record, session.record.candidate
        about = waits.release if waits else admission.release
        outcome = {
            "name": session.delivery,
            "result": str(ended.outcome if ended else admission.answer),
            "release": record.serving,
            "candidate": about if about != record.serving and not ended else None,
            "url": session.url(session.world()),
            "report": ended.report if ended else waits.report if waits else None,
            "request": session.request,
        }
        artifacts.publish_outcome(outcome, self._then())
        return artifacts.completed(outcome)

    def _then(self) -> dict[str, str]:
        """What a person may do next, by the words of a table."""
        name, record = self.session.delivery, self.session.record
        if asked := rules.unanswered(record):
            how = f"*Resume* in the menu ⋮ of this page, or `deliver promote {name}` (`--refuse`: no)"
            return {"answer": f"{how}, until {moment(asked.until)}"}
        try:
            return {"go back": f"`deliver rollback {name}`, to `{protocol.rollback_goal(record, name)}`"}
        except Refused:
            return {}


@contextmanager
def delivering(spec: DeliverySpec, request: str | None, *, take_over: bool = False) -> Iterator[Run]:
    """Preflight, then a session of ``spec``'s delivery. Refused before anything is
    touched.
    """
    with page(spec.name):
        key = spec.target.key()
        place = Location.of(key).open(take_over=take_over)
        preflight(spec, place, key.target())
        with opened(place, spec.name, key, request=named(request), when_busy=spec.concurrency) as session:
            yield Run(session)


@contextmanager
def standing(name: str, request: str | None, where: Location | None = None) -> Iterator[Run]:
    """A session of a delivery that exists already, on this host or ``where``."""
    with page(name):
        place = (where or Location()).open()
        key = read(place, name).record.target
        with opened(place, name, key, request=named(request)) as session:
            yield Run(session)


@contextmanager
def page(name: str) -> Iterator[None]:
    """What a run of the delivery ``name`` shows of its steps, and why it failed."""
    with artifacts.progress_sink(), in_order():
        try:
            yield
        except Trouble as trouble:
            artifacts.publish_trouble(name, trouble)
            raise
        except Exception as error:
            if run_id() is None:
                raise
            bad = Permanent(broken(error))
            artifacts.publish_trouble(name, bad)
            raise bad from error


def named(request: str | None) -> str:
    """The name of this request: the given one, the run's id, or a new one. BadInput where
    it cannot be one.
    """
    if request is not None and not REQUEST.fullmatch(request):
        why = f"{request!r:.100} is not made of letters, digits and . _ : -, at most 100"
        raise BadInput(
            Finding("release.bad-request", "the request's name is refused", why, "name it as nightly-2026-11-27")
        )
    return request or run_id() or uuid.uuid4().hex
