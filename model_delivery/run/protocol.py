"""The protocol of a release: the rules of ``run/rules.py`` with what each does to the
world, in an order that survives a kill.

Every function leaves the record so that a run killed anywhere in it is finished, or
undone, by the next one.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from model_delivery.base import Finding, Interrupted, Progress, Refused, Trouble, report
from model_delivery.run import evidence, rules
from model_delivery.run.frozen import Frozen
from model_delivery.run.plan import identify, route, storage_changes
from model_delivery.run.record import Ended, Outcome, Record
from model_delivery.run.restore import rebuilt
from model_delivery.run.rules import Answer
from model_delivery.run.session import Session
from model_delivery.run.stepping import fetch
from model_delivery.spec import DeliverySpec
from model_delivery.values import (
    ABSENT,
    RELEASE,
    Lock,
    Ref,
    ReleaseId,
    Rollout,
    Stage,
    Strategy,
)

READY_SECONDS = 600.0
REFUSALS = {3: Outcome.REFUSED, 4: Outcome.GATE_FAILED}
NOT_APPROVED = "gate.not-approved"


@dataclass(frozen=True)
class Admission:
    """What this request came to, and the release that it is about; ``ended``: how it had
    ended before.
    """

    answer: Answer
    release: ReleaseId
    ended: Ended | None = None


def admit(session: Session, spec: DeliverySpec, lock: Lock, *, scheduled: bool) -> Admission:
    """Finish what was left, then carry out what the plan says of this request, up to a
    candidate's proposal.
    """
    replicas = spec.serving.replicas.min
    release, frozen = identify(session, spec, lock, session.clock.now())
    _restore(session, replicas, {release: frozen})
    _restore_release(session, release, frozen)
    fetched = _bring_back(session)
    finish_ending(session)
    lapse(session)
    answer = rules.answer(session.record, release, frozen.unchanged, spec.gates, session.request, scheduled=scheduled)
    if answer is Answer.REPORTED:
        return Admission(answer, release, session.record.answered(session.request))
    if answer in (Answer.HELD, Answer.AWAITING):
        session.converge()
        return Admission(answer, release)
    candidate = session.record.candidate
    if candidate is not None and candidate.release != release:
        withdraw(session, Outcome.REPLACED, 1, f"another release was asked for: {release}", by=session.request)
    _note(session, rules.asked_by_hand(session.record, spec.runner))
    done = session.converge()
    for change in done.beside:
        report(Progress("others", str(change)))
    collect(session, spec.rollout)
    if replicas != session.record.replicas:
        _note(session, rules.scaled(session.record, replicas))
        session.converge()
    if answer is Answer.GOES_ON:
        session.write(rules.taken_over(session.record, session.request, spec.gates, asks=spec.approval == "manual"))
        if candidate is not None and candidate.rollout != spec.rollout:
            report(Progress("plan", "the candidate goes on by the rollout that it began with, not the spec's"))
        return Admission(answer, release)
    if answer is Answer.UNCHANGED:
        if rules.other_gates(session.record, spec.gates):
            report(Progress("plan", rules.OTHER_GATES))
        _wait_serving(session)
        return Admission(Answer.HEALED if done.changes or fetched else answer, release)
    address = session.target.address(session.delivery)
    proposal = rules.proposed(session.record, release, session.request, spec.rollout, spec.gates, address)
    leaving = session.record.beside_serving
    storage_changes(session, frozen)  # Refused, and NoRoom, before anything is touched
    route(session.supposing(proposal, {release: frozen}), leaving)
    session.freeze(release, frozen)
    session.write(proposal)
    session.converge()
    return Admission(answer, release)


def _note(session: Session, record: Record) -> None:
    """Of a delivery that is not there yet nothing is stored before its first release is
    proposed: it may be refused.
    """
    if session.version == ABSENT:
        session.record = record
    else:
        session.write(record)


def _restore(session: Session, replicas: int, meant: Mapping[ReleaseId, Frozen]) -> None:
    """A record that somebody deleted comes back, while one of its releases has all of the
    traffic.
    """
    record = rebuilt(session.supposing(session.record, meant), replicas)
    if record != session.record:
        session.write(record)
        report(Progress("record", f"it was gone; {record.serving} has all of the traffic, so that is what serves"))


def _restore_release(session: Session, release: ReleaseId, frozen: Frozen) -> None:
    """And the object of each release that is wanted, where a copy or its spec makes it
    again.
    """
    known = {**session.releases(), release: frozen}
    record = session.record
    wanted = {record.serving, record.previous, *(name for name, _ in record.desired.releases)}
    for name in known.keys() & wanted:
        stored = session.place.get(session.delivery, Ref(RELEASE, name))
        if stored is None or not stored.resource.spec:
            session.freeze(name, known[name])


def _bring_back(session: Session) -> bool:
    """Weights that somebody removed, before an engine is started again that needs
    them.
    """
    lost = session.lost_weights()
    for name in lost:
        report(Progress("fetch", f"the weights of {name}, which shall run, are gone: fetched again"))
        fetch(session, name, f"heal {session.request}")
    return bool(lost)


def finish_ending(session: Session) -> None:
    """A run that was killed while it withdrew its candidate: finish that first."""
    candidate = session.record.candidate
    if candidate is not None and candidate.ending is not None:
        session.converge()
        _write_history(session, rules.withdrawn(session.record), candidate.rollout)


def lapse(session: Session) -> None:
    """Rule 11: nobody has approved the candidate in time, so the answer is no."""
    if rules.lapsed(session.record, session.clock.now()):
        withdraw(session, Outcome.NOT_APPROVED, rules.GATE, rules.LAPSED, hold=True)


def look_after(session: Session) -> None:
    """Rule 2, where resolve failed: what serves is healed; a candidate is neither
    finished nor removed.
    """
    with suppress(Trouble):  # the source may be what did not answer
        _bring_back(session)
    finish_ending(session)
    if session.record.candidate is None:
        session.converge()
        return
    for resource in session.resources(session.desired()):
        serves = resource.release in (None, session.record.serving)
        if serves and session.place.put(resource, dry_run=True).action != "unchanged":
            if resource.role == "route":
                session.lead(resource, session.place.get(session.delivery, resource.ref))
            session.place.put(resource)


def enter(session: Session, stage: Stage, strategy: Strategy) -> None:
    """Rule 4: write what the stage wants and the phase, then converge."""
    session.write(rules.entered(session.record, stage, strategy))
    session.converge()


def wait_routed(session: Session, stage: Stage) -> None:
    """Where the stage gives the candidate traffic. Before, the route is the old
    release's, and whether that is up is not the candidate's affair.
    """
    if stage.share(session.release(session.candidate.release)):
        session.wait_routed()


def promote(session: Session) -> None:
    """Rule 5, in one write; a rollback also holds what it left."""
    candidate, old = session.candidate, session.record.serving
    left = session.frozen(old).facts if old and candidate.kind == "rollback" else None
    facts, now = session.frozen(candidate.release).facts, session.clock.now()
    sleeps = old is not None and candidate.rollout.sleeps and session.frozen(old).payload.sleeps
    _write_history(session, rules.promoted(session.record, now, facts, left, sleeps=sleeps), candidate.rollout)
    if session.record.desired.asleep:
        session.converge()


def withdraw(
    session: Session, outcome: Outcome, exit_code: int, message: str, *, by: str = "", hold: bool = False
) -> None:
    """End the candidate: what serves keeps (or gets back) all of the traffic, the rest
    goes. What serves is not waited for where it was down before.
    """
    facts, now = session.frozen(session.candidate.release).facts, session.clock.now()
    down = session.serving_down()
    session.write(rules.ending(session.record, outcome, exit_code, message, now, facts, by=by, hold=hold))
    finish_ending(session)
    if down:
        report(Progress("withdraw", f"{session.record.serving} serves, and was down before: {down}"))
    elif session.record.serving is not None:
        _wait_serving(session)


def refuse(session: Session, trouble: Trouble) -> None:
    """Withdraw the candidate because of ``trouble``; what cannot be withdrawn (a lost
    lease) is left to the next run.
    """
    tried = session.record.candidate
    if tried is None or tried.ending is not None:
        return
    log = evidence.engine_log(session.place, session.delivery, tried.release)
    if log and tried.report is None:
        where = evidence.where(session.delivery, tried.release, tried.attempt)
        session.write(rules.judged(session.record, tried.figures, where))
    answered = any(finding.code == NOT_APPROVED for finding in trouble.findings)
    outcome = Outcome.NOT_APPROVED if answered else REFUSALS.get(trouble.exit_code, Outcome.FAILED)
    withdraw(session, outcome, trouble.exit_code, trouble.text, hold=rules.at_fault(tried, trouble))
    if log:
        there = evidence.files(session.place, session.delivery, tried)
        evidence.keep(session.place, session.delivery, tried.release, tried.attempt, {**there, "engine.log": log})


def cancel(session: Session) -> bool:
    """End the candidate of the session's own request, with its steps; is there one?"""
    candidate = session.record.candidate
    if candidate is None or candidate.request != session.request:
        return False
    sweep(session)
    if candidate.ending is None:
        withdraw(session, Outcome.CANCELLED, Interrupted.exit_code, "it was cancelled")
    else:
        finish_ending(session)
    return True


def collect(session: Session, rollout: Rollout) -> None:
    """What is due: an approval that nobody gave, a standby whose time is over, steps of
    ended attempts, releases that no rollback can want.
    """
    lapse(session)
    if session.record.candidate is not None:
        return
    if rules.standby_over(session.record, session.clock.now()):
        session.write(rules.without_standby(session.record))
        session.converge()
        session.write(rules.standby_gone(session.record))
    live = rules.live(session.record, rollout.keep)
    _note(session, evidence.collected(session.place, session.delivery, session.record, live))
    for ref in session.leftovers(rollout.keep):
        session.place.delete(session.delivery, ref)


def start_rollback(session: Session, to: ReleaseId | None, rollout: Rollout) -> Admission:
    """Rule 7: the goal is fixed before the first write, and a rerun goes on to it."""
    if to == session.record.serving:
        _bring_back(session)
    finish_ending(session)
    before = session.record.answered(session.request)
    if before is not None:
        return Admission(Answer.REPORTED, before.release, before)
    candidate = session.record.candidate
    under_way = candidate is not None and candidate.kind == "rollback" and to in (None, candidate.release)
    goal = to or (candidate.release if candidate and under_way else rollback_goal(session.record, session.delivery))
    frozen = session.frozen(goal)
    if under_way:
        session.write(rules.taken_over(session.record, session.request))
        return Admission(Answer.GOES_ON, goal)
    if candidate is not None:
        withdraw(session, Outcome.ROLLED_BACK, 1, "a rollback was asked for", by=session.request)
    if goal == session.record.serving:
        session.converge()
        collect(session, rollout)
        return Admission(Answer.UNCHANGED, goal)
    session.write(rules.rollback_proposed(session.record, goal, session.request, rollout, frozen.address))
    return Admission(Answer.NEW, goal)


def rollback_goal(record: Record, delivery: str) -> ReleaseId:
    """The previous release, unless a rollback left it. Refused when there is none."""
    goal = None if record.previous == record.serving else record.previous
    if goal is None or goal in record.rolled_back_from():
        what, fix = f"{delivery} cannot be rolled back", "name a release with --to; see `deliver history`"
        left = f"the one before, {goal}, was itself rolled back from"
        why = left if goal else "there is no release before the one that serves"
        raise Refused(Finding("release.no-rollback", what, why, fix))
    return goal


def take_down(session: Session) -> None:
    """Rule 8, in one write; weights, storage and the record stay."""
    finish_ending(session)
    session.write(rules.taken_down(session.record))
    session.converge()
    sweep(session)


def sweep(session: Session) -> None:
    """Steps that have ended, or are of no use any more."""
    for ref, seen in session.world().objects.items():
        if seen.resource.role == "step":
            session.place.delete(session.delivery, ref)


def _wait_serving(session: Session) -> None:
    session.wait_ready(str(session.record.serving), READY_SECONDS)
    session.wait_routed()


def _write_history(session: Session, record: Record, rollout: Rollout) -> None:
    """Without what is older than ``rollout.history``, whose evidence goes first: nothing
    is left without a record of it.
    """
    shorter, gone = rules.shortened(record, rollout.history)
    for ended in gone:
        evidence.forget(session.place, session.delivery, ended)
    session.write(shorter)
