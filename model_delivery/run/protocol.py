"""The rules of a release (docs/architecture.md): admit, propose, stage, promote, withdraw, roll back, take down, collect.

Every function leaves the record so that a run killed anywhere in it is finished, or undone, by the next one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model_delivery.base.findings import Finding, GateFailed, NoRoom, Permanent, Refused, Trouble
from model_delivery.base.progress import Progress, report
from model_delivery.run import evidence
from model_delivery.run.frozen import Frozen
from model_delivery.run.record import Candidate, Ended, Wanted
from model_delivery.run.restore import restore
from model_delivery.run.session import Session, frozen_releases
from model_delivery.spec import DeliverySpec
from model_delivery.values.gates import Gates, Rollout
from model_delivery.values.readiness import Current, Failed
from model_delivery.values.release import Lock, Release, ReleaseId
from model_delivery.values.resources import digest
from model_delivery.values.rollout import Stage, stages

FETCH = "fetch"
READY_TIMEOUT = 600.0


@dataclass(frozen=True)
class Admission:
    """What this request comes to: go on with a candidate, or nothing to do for the reason given."""

    result: Literal["candidate", "unchanged", "healed", "held", "reported"]
    release: ReleaseId
    ended: Ended | None = None


def unchanged_digest(spec: DeliverySpec, lock: Lock) -> str:
    """By this a rerun knows a release again: model, serving without replicas, target, storage and lock. Replicas, gates, rollout are not identity."""
    parts = spec.model_dump(mode="json", include={"model", "serving", "target", "storage"})
    parts["serving"].pop("replicas")
    return digest([parts, lock.model_dump(mode="json")], 20)


def identify(session: Session, spec: DeliverySpec, lock: Lock) -> tuple[ReleaseId, Frozen]:
    """The release that ``spec`` means: a known one with its frozen payload, else a new one, rendered now."""
    unchanged = unchanged_digest(spec, lock)
    known = frozen_releases(session.place.world(session.delivery))
    tried = {
        ended.release for ended in session.record.ended
    }  # an adoption that was killed before its record was written has taken nothing
    same = [
        name
        for name, one in known.items()
        if one.unchanged == unchanged and (one.payload.by_hand is None or name in tried)
    ]
    if same:
        name = session.record.serving if session.record.serving in same else same[0]
        return name, known[name]
    payload = session.target.payload(spec, lock)
    frozen = Frozen(
        payload=payload,
        lock=lock,
        unchanged=unchanged,
        model=spec.model,
        storage=spec.storage,
        args=tuple(spec.serving.args),
        startup_timeout=spec.serving.startup_timeout,
        address=session.target.address(session.delivery),
        created=session.clock.now(),
    )
    return digest(payload.content()), frozen


def admit(session: Session, spec: DeliverySpec, lock: Lock, *, scheduled: bool) -> Admission:
    """Rules 1, 2, 3, 6 and 7: finish what was left, then say what this request comes to; a new release is proposed here."""
    release, frozen = identify(session, spec, lock)
    restore(session, spec, release, frozen)
    finish_ending(session)
    before = next((e for e in reversed(session.record.ended) if e.request == session.request), None)
    if before is not None:
        return Admission("reported", before.release, before)
    candidate = session.record.candidate
    if scheduled and (session.record.held == frozen.unchanged or (candidate and candidate.kind == "rollback")):
        session.converge()
        return Admission("held", session.record.serving or release)
    if candidate is not None and candidate.release != release:
        withdraw(session, "replaced", 1, f"another release was asked for: {release}")
        candidate = None
    session.write(held=None, runner=spec.runner)
    healed = session.converge().changes
    collect(session, spec.rollout)
    _scale(session, spec.serving.replicas.min)
    if candidate is not None:
        session.write(candidate=candidate.model_copy(update={"request": session.request}))
        return Admission("candidate", release)
    if session.record.serving == release:
        session.wait_ready(release, READY_TIMEOUT)
        session.wait_routed()
        return Admission("healed" if healed else "unchanged", release)
    _check_room(session, release, frozen, spec)
    propose(session, release, frozen, spec)
    return Admission("candidate", release)


def finish_ending(session: Session) -> None:
    """A run that was killed while it withdrew its candidate: finish that first."""
    candidate = session.record.candidate
    if candidate is not None and candidate.ending is not None:
        session.converge()
        session.write(candidate=None, ended=_history(session, (candidate.ending,), candidate.rollout))


def look_after(session: Session) -> None:
    """Rule 2, where resolve failed: what serves is healed; a candidate is neither finished nor removed."""
    finish_ending(session)
    if session.record.candidate is None:
        session.converge()
        return
    for resource in session.target.compose(session.desired()):
        if (
            resource.release in (None, session.record.serving)
            and session.place.put(resource, dry_run=True).action != "unchanged"
        ):
            session.place.put(resource)


def _scale(session: Session, replicas: int) -> None:
    if replicas == session.record.replicas:
        return
    wanted = session.record.desired
    scaled = tuple((name, replicas) for name, _ in wanted.releases)
    session.write(replicas=replicas, desired=wanted.model_copy(update={"releases": scaled}))
    session.converge()


def _check_room(session: Session, release: ReleaseId, frozen: Frozen, spec: DeliverySpec) -> None:
    """Refuse before anything is touched, where it is already known that both releases do not fit."""
    if (
        session.record.stop_after is not None
        or spec.rollout.strategy == "recreate"
        or spec.rollout.when_full == "recreate"
    ):
        return
    new, old = (
        Release(release, frozen.payload, spec.serving.replicas.min),
        session.desired(session.record.only_serving()),
    )
    first = stages(spec.rollout.strategy, old, new, tuple(spec.rollout.steps), session.target.can)[0]
    for resource in session.target.compose(first.desired):
        session.place.put(resource, dry_run=True)


def propose(session: Session, release: ReleaseId, frozen: Frozen, spec: DeliverySpec) -> None:
    """Rule 3: the release object first; then in one write the candidate, which ends a standby; then what was deleted is gone."""
    session.freeze(release, frozen)
    candidate = Candidate(
        release=release,
        kind="deliver",
        attempt=session.record.attempt_of(release),
        phase=FETCH,
        request=session.request,
        rollout=spec.rollout,
        gates=spec.gates,
    )
    session.write(
        candidate=candidate,
        desired=session.record.only_serving(),
        stop_after=None,
        address=session.record.address or session.target.address(session.delivery),
    )
    session.converge()


def plan_stages(session: Session) -> tuple[Stage, ...]:
    """The candidate's stages from its phase on, by its own strategy; ``recreate`` where both do not fit and the spec allows it."""
    candidate = candidate_of(session)
    old = session.desired(session.record.only_serving())
    new = session.release(candidate.release)
    rollout = candidate.rollout
    strategy = "blue-green" if candidate.kind == "rollback" and rollout.strategy == "canary" else rollout.strategy
    plan = stages(strategy, old, new, tuple(rollout.steps), session.target.can)
    serving = session.record.serving
    if candidate.phase == "stop" or (
        candidate.phase in ("dark", "promote") and serving not in dict(session.record.desired.releases)
    ):
        plan = stages("recreate", old, new, (), session.target.can)
    names = [stage.name for stage in plan]
    if candidate.phase in names:
        return plan[names.index(candidate.phase) :]
    try:
        for resource in session.target.compose(plan[0].desired):
            session.place.put(resource, dry_run=True)
    except NoRoom:
        if rollout.when_full != "recreate" or not old.releases:
            raise
        return stages("recreate", old, new, (), session.target.can)
    return plan


def enter(session: Session, stage: Stage) -> None:
    """Rule 4: write ``desired`` and the phase, then converge."""
    want = stage.desired
    wanted = Wanted(releases=tuple((r.id, r.replicas) for r in want.releases), traffic=tuple(want.shares.items()))
    candidate = candidate_of(session).model_copy(update={"phase": stage.name})
    session.write(desired=wanted, candidate=candidate)
    session.converge()


def ready_timeout(session: Session) -> float:
    """How long the candidate may take to become ready, in seconds."""
    frozen = session.frozen(candidate_of(session).release)
    if frozen.startup_timeout is not None:
        return frozen.startup_timeout.seconds
    return frozen.payload.startup_seconds


def watch(session: Session, stage: Stage) -> None:
    """Look after the candidate while it has traffic: ``rollout.soak`` on a canary's share, ``rollout.watch`` on all of it.

    GateFailed when it, or the route to it, does not stay ready.
    """
    rollout, release = candidate_of(session).rollout, session.release(candidate_of(session).release)
    shared = 0 < stage.desired.shares.get(release.id, 0) < 100
    length = rollout.watch.seconds if stage.name == "promote" else rollout.soak.seconds if shared else 0.0
    end = session.clock.monotonic() + length
    while (left := end - session.clock.monotonic()) > 0:
        world = session.place.world(session.delivery)
        for state in (session.target.readiness(release, world), session.target.routed(stage.desired, world)):
            if not isinstance(state, Current):
                seen = (
                    state.finding if isinstance(state, Failed) else Finding("todo", "it stopped being ready", state.why)
                )
                when = Finding(
                    "todo",
                    f"release {release.id} failed while it was watched",
                    f"{left:.0f} s before the end",
                    "the previous release serves again",
                )
                raise GateFailed(seen, when)
        report(Progress("watch", "still ready", done=round(length - left), total=length, unit="s"))
        session.place.hint(session.delivery, left)


def judged(session: Session, figures: dict[str, float], report: str) -> None:
    """Remember what the gates measured: it belongs to the attempt, and a rerun that starts behind them must know it."""
    session.write(candidate=candidate_of(session).model_copy(update={"figures": figures, "report": report}))


def promote(session: Session) -> Ended:
    """Rule 5, in one write; a rollback also holds what it left."""
    candidate, old = candidate_of(session), session.record.serving
    outcome = "promoted" if candidate.kind == "deliver" else "rolled back to"
    ended = _ended(session, outcome, 0, "")
    more: tuple[Ended, ...] = (ended,)
    held = session.record.held
    if candidate.kind == "rollback" and old is not None:
        left = ended.model_copy(
            update={
                "release": old,
                "outcome": "rolled back from",
                "request": "",
                "attempt": 0,
                "figures": {},
                **_facts(session, old),
            }
        )
        more, held = (left, ended), session.frozen(old).unchanged
    standby = candidate.rollout.standby.seconds
    session.write(
        serving=candidate.release,
        previous=old or session.record.previous,
        candidate=None,
        stop_after=session.clock.now() + standby if old else None,
        ended=_history(session, more, candidate.rollout),
        held=held,
    )
    return ended


def withdraw(session: Session, outcome: str, exit_code: int, message: str) -> None:
    """End the candidate: what serves keeps (or gets back) all of the traffic, the rest goes."""
    candidate = candidate_of(session)
    ended = _ended(session, outcome, exit_code, message)
    address = session.record.address if session.record.serving else None
    session.write(
        candidate=candidate.model_copy(update={"ending": ended}), desired=session.record.only_serving(), address=address
    )
    finish_ending(session)
    if session.record.serving is not None:
        session.wait_ready(session.record.serving, READY_TIMEOUT)
        session.wait_routed()


def refuse(session: Session, trouble: Trouble) -> None:
    """Withdraw the candidate because of ``trouble``; what cannot be withdrawn (a lost lease) is left to the next run."""
    if session.record.candidate is None or session.record.candidate.ending is not None:
        return
    outcome = {3: "refused", 4: "gate failed"}.get(trouble.exit_code, "failed")
    tried, on_host = session.record.candidate, session.record.target.place == "host"
    log = b"" if on_host else evidence.engine_log(session.place, session.delivery, tried.release)
    if log and tried.report is None:
        judged(session, tried.figures, evidence.where(session.delivery, tried.release, tried.attempt))
    withdraw(session, outcome, trouble.exit_code, trouble.text)
    if log:
        there = evidence.files(session.place, session.delivery, tried)
        evidence.keep(session.place, session.delivery, tried.release, tried.attempt, {**there, "engine.log": log})


def collect(session: Session, rollout: Rollout) -> None:
    """What is due: a standby whose time is over, steps of ended attempts, releases that no rollback can want."""
    record = session.record
    if record.candidate is not None:
        return
    if record.stop_after is not None and session.clock.now() >= record.stop_after:
        session.write(desired=record.only_serving())
        session.converge()
        session.write(stop_after=None)
    promoted = [e.release for e in reversed(record.ended) if e.exit_code == 0]
    live = {
        record.serving,
        record.previous,
        *(name for name, _ in session.record.desired.releases),
        *list(dict.fromkeys(promoted))[: rollout.keep],
    }
    _collect_evidence(session, live)
    for ref, seen in sorted(session.place.world(session.delivery).objects.items()):
        if seen.resource.role == "step" or (ref.kind.name == "Release" and ref.name not in live):
            session.place.delete(session.delivery, ref)


def _history(session: Session, more: tuple[Ended, ...], rollout: Rollout) -> tuple[Ended, ...]:
    """With ``more``, and without what is older than ``rollout.history`` and its evidence, which goes first: nothing is left without a record of it."""
    every = (*session.record.ended, *more)
    for old in every[: -rollout.history]:
        evidence.forget(session.place, session.delivery, old)
    return every[-rollout.history :]


def _collect_evidence(session: Session, live: set[ReleaseId | None]) -> None:
    """Only the last attempts, and those of releases that a rollback can want, keep theirs in a cluster."""
    ended = session.record.ended
    old = [one for one in ended[: -evidence.KEPT] if one.release not in live]
    gone = {id(one): evidence.forget(session.place, session.delivery, one) for one in old}
    session.write(ended=tuple(gone.get(id(one), one) for one in ended))


def start_rollback(session: Session, to: ReleaseId | None, rollout: Rollout) -> Admission:
    """Rule 7: a candidate of its own kind, which leaves ``desired`` as it is, so that a standby it goes to stays up."""
    finish_ending(session)
    before = next((e for e in reversed(session.record.ended) if e.request == session.request), None)
    if before is not None:
        return Admission("reported", before.release, before)
    candidate = session.record.candidate
    mine = candidate if candidate and candidate.kind == "rollback" and to in (None, candidate.release) else None
    goal = to or (mine.release if mine else rollback_goal(session))
    frozen = session.frozen(goal)
    if candidate is not None and mine is None:
        withdraw(session, "rolled back", 1, "a rollback was asked for")
    if mine is not None:
        session.write(candidate=mine.model_copy(update={"request": session.request}))
        return Admission("candidate", goal)
    if goal == session.record.serving:
        session.converge()
        collect(session, rollout)
        return Admission("unchanged", goal)
    number = session.record.attempt_of(goal)
    gates = Gates(smoke=None, throughput=None)
    fresh = Candidate(
        release=goal,
        kind="rollback",
        attempt=number,
        phase=FETCH,
        request=session.request,
        rollout=rollout,
        gates=gates,
    )
    session.write(candidate=fresh, address=session.record.address or frozen.address)
    return Admission("candidate", goal)


def rollback_goal(session: Session) -> ReleaseId:
    """The previous release, unless a rollback left it. Refused when there is none."""
    goal = session.record.previous
    if goal == session.record.serving:
        goal = None
    if goal is None or goal in session.record.rolled_back_from():
        why = (
            "there is no release before the one that serves"
            if goal is None
            else f"the one before, {goal}, was itself rolled back from"
        )
        raise Refused(
            Finding(
                "todo",
                f"{session.delivery} cannot be rolled back",
                why,
                "name a release with --to; see `deliver history`",
            )
        )
    return goal


def take_down(session: Session) -> None:
    """Rule 8, in one write; weights, storage and the record stay."""
    record = session.record
    if record.candidate is not None:
        finish_ending(session)
    session.write(
        serving=None,
        candidate=None,
        stop_after=None,
        previous=session.record.serving or record.previous,
        desired=Wanted(),
        address=None,
    )
    session.converge()
    for ref, seen in session.place.world(session.delivery).objects.items():
        if seen.resource.role == "step":
            session.place.delete(session.delivery, ref)


def candidate_of(session: Session) -> Candidate:
    """The candidate; Permanent when another run has ended it."""
    if session.record.candidate is None:
        raise Permanent(Finding("todo", f"{session.delivery} has no candidate", "another run ended it", "run again"))
    return session.record.candidate


def _facts(session: Session, release: ReleaseId) -> dict[str, object]:
    frozen = session.frozen(release)
    return {"commit": frozen.lock.snapshot.commit, "args": frozen.args}


def _ended(session: Session, outcome: str, code: int, message: str) -> Ended:
    candidate = candidate_of(session)
    return Ended.model_validate(
        {
            "release": candidate.release,
            "attempt": candidate.attempt,
            "outcome": outcome,
            "request": candidate.request,
            "exit_code": code,
            "at": session.clock.now(),
            "message": message,
            "figures": candidate.figures,
            "report": candidate.report,
            **_facts(session, candidate.release),
        }
    )
