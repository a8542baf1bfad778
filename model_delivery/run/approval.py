"""Rule 11: a candidate waits for a person before it gets traffic."""

from __future__ import annotations

from dataclasses import replace

from model_delivery.base import Finding, GateFailed, Refused
from model_delivery.base.scrubbing import plain
from model_delivery.run import protocol, rules
from model_delivery.run.record import Approval
from model_delivery.run.session import Session
from model_delivery.values.plain_secrets import masked


def approved(session: Session, seconds: float) -> bool:
    """May the candidate have traffic? A person is asked, in one write, where
    nobody was; False while they have not answered. GateFailed where they said no.
    """
    asked = session.candidate.approval
    if asked is None:
        session.write(rules.asked(session.record, session.clock.now() + seconds))
        return False
    if asked.promote is False:
        raise not_approved(asked)
    return asked.promote is True


def not_approved(asked: Approval) -> GateFailed:
    what, fix = "a person refused the release", "change what they did not like, or ask again: `deliver up`"
    return GateFailed(Finding("gate.not-approved", what, asked.words().removeprefix("refused "), fix))


def decide(session: Session, decision: Approval) -> None:
    """Note what a person said. Refused where nobody is asked, or somebody has
    answered.
    """
    late = rules.lapsed(session.record, session.clock.now())
    protocol.lapse(session)
    asked, candidate = rules.unanswered(session.record), session.record.candidate
    if asked is None:
        said = candidate.approval.words() if candidate and candidate.approval else "nothing waits for an approval"
        said = f"{rules.LAPSED}, and the release is withdrawn" if late else said
        what, fix = f"no decision on {session.delivery} is open", f"see `deliver status {session.delivery}`"
        raise Refused(Finding("release.nothing-to-approve", what, said, fix))
    by, reason = (" ".join(masked(plain(text)).split()) for text in (decision.by, decision.reason))
    session.write(rules.decided(session.record, replace(decision, until=asked.until, by=by, reason=reason)))
