"""The rules of a release (docs/architecture.md) as pure functions: a record and what
happened give the next record.

Each is one write. What must happen to the world between two of them is
``run/protocol.py``'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from model_delivery.base import GateFailed, Retryable, Trouble
from model_delivery.measure.verdict import NOT_VALID
from model_delivery.run.record import Approval, Candidate, Ended, Outcome, Race, Record, Starts, Wanted, alone
from model_delivery.values import FETCH, Address, Gates, ReleaseId, Rollout, Runner, Stage, Strategy, digest

GATE = GateFailed.exit_code
LAPSED = "nobody approved it in time"
NO_STARTS: Starts = {}
NO_GATES = Gates(smoke=None, throughput=None)
OTHER_GATES = "the spec's gates are not those that what serves has passed: they judge the next release, not this one"


class Answer(StrEnum):
    """What a request comes to."""

    NEW = "new release"
    GOES_ON = "goes on"
    UNCHANGED = "unchanged"
    HEALED = "healed"
    HELD = "held"
    AWAITING = "awaiting approval"
    REFUSED = "refused"
    REPORTED = "reported"

    @property
    def delivers(self) -> bool:
        """Is there a candidate to bring on its way?"""
        return self in (Answer.NEW, Answer.GOES_ON)


@dataclass(frozen=True)
class Facts:
    """Of a release: what history keeps of it (the model's commit, the engine's
    arguments), and its spec's digest.
    """

    commit: str
    args: tuple[str, ...]
    unchanged: str


def answer(
    record: Record, release: ReleaseId, unchanged: str, gates: Gates, request: str, *, scheduled: bool
) -> Answer:
    """Rules 1, 2, 6 and 7: a request for ``release``, whose spec and lock have the digest
    ``unchanged``. A candidate that is another release is replaced by it. What a gate
    refused is not held before other ``gates``.
    """
    if record.answered(request) is not None:
        return Answer.REPORTED
    candidate = record.candidate
    held = record.held == unchanged and not _refused_by_others(record, release, gates)
    if scheduled and (held or (candidate and candidate.kind == "rollback")):
        return Answer.HELD
    if candidate is not None and candidate.release == release:
        anothers = scheduled and candidate.request != request  # the run that asked is resumed with the answer
        return Answer.AWAITING if anothers and unanswered(record) else Answer.GOES_ON
    return Answer.UNCHANGED if record.serving == release else Answer.NEW


def asked_by_hand(record: Record, runner: Runner) -> Record:
    """A request that is not held takes what a rollback holds, and its runner counts from
    now on.
    """
    return replace(record, held=None, runner=runner)


def held_again(record: Record, held: str | None) -> Record:
    """A search frees nothing that a schedule shall not try."""
    return replace(record, held=held)


def proposed(
    record: Record, release: ReleaseId, request: str, rollout: Rollout, gates: Gates, address: Address
) -> Record:
    """Rule 3: a candidate, which ends a standby. It is wanted only when its first stage
    is entered.
    """
    candidate = Candidate(release, "deliver", record.attempt_of(release), FETCH, request, rollout, gates)
    where = record.address or address
    return replace(record, candidate=candidate, desired=record.only_serving, stop_after=None, address=where)


def rollback_proposed(
    record: Record, release: ReleaseId, request: str, rollout: Rollout, address: Address | None
) -> Record:
    """Rule 7: a candidate of its own kind, which leaves ``desired`` as it is, so that a
    standby it goes to stays up.
    """
    candidate = Candidate(release, "rollback", record.attempt_of(release), FETCH, request, rollout, NO_GATES)
    return replace(record, candidate=candidate, address=record.address or address)


def taken_over(record: Record, request: str, gates: Gates | None = None, *, asks: bool = False) -> Record:
    """Rule 2: the candidate goes on for another request, whose ``gates`` judge it, and
    which ``asks`` a person or does not.
    """
    candidate = _candidate(record)
    approval = candidate.approval if asks else None
    return _with(record, replace(candidate, request=request, gates=gates or candidate.gates, approval=approval))


def entered(record: Record, stage: Stage, strategy: Strategy) -> Record:
    """Rule 4: what the stage wants, by the strategy that was chosen."""
    releases = tuple((release.id, release.replicas) for release in stage.desired.releases)
    candidate = replace(_candidate(record), phase=stage.phase, strategy=strategy)
    asleep = tuple(sorted(stage.desired.asleep))
    return replace(_with(record, candidate), desired=Wanted(releases, tuple(stage.desired.shares.items()), asleep))


def judged(record: Record, figures: Mapping[str, float], report: str, starts: Starts = NO_STARTS) -> Record:
    """What the gates measured belongs to the attempt, and a rerun that starts behind them
    must know it.
    """
    return started(_with(record, replace(_candidate(record), figures=figures, report=report)), starts)


def started(record: Record, starts: Starts) -> Record:
    """How its engine's start went belongs to the attempt too."""
    candidate = _candidate(record)
    return _with(record, replace(candidate, starts={**candidate.starts, **starts}))


def raced(record: Record, race: Race, starts: Starts = NO_STARTS) -> Record:
    """How far the race of its loaders is; ``starts``: of the one that has won."""
    return started(_with(record, replace(_candidate(record), race=race)), starts)


def asked(record: Record, until: float) -> Record:
    """Rule 11: a person is asked, until ``until``, whether the candidate may have
    traffic.
    """
    return _with(record, replace(_candidate(record), approval=Approval(until)))


def decided(record: Record, decision: Approval) -> Record:
    """What they said, and who it was."""
    return _with(record, replace(_candidate(record), approval=decision))


def unanswered(record: Record) -> Approval | None:
    """What a person is asked and has not said yet."""
    asked = record.candidate.approval if record.candidate else None
    return asked if asked and asked.promote is None else None


def lapsed(record: Record, now: float) -> bool:
    """Has nobody approved the candidate in time? That is a no."""
    asked = unanswered(record)
    return asked is not None and now >= asked.until


def lapsing(record: Record, now: float, facts: Facts) -> Record:
    """Withdraw, first, for that; a scheduled run does not ask again."""
    return ending(record, Outcome.NOT_APPROVED, GATE, LAPSED, now, facts, hold=True)


def at_fault(tried: Candidate, trouble: Trouble) -> bool:
    """Is it the release itself that does not do, whenever it is tried? A gate said so, by
    figures that hold, or its engine ended by itself.
    """
    codes = [finding.code for finding in trouble.findings]
    engine = any(code.startswith("engine.") for code in codes)
    judged = isinstance(trouble, GateFailed) and "gate.node" not in codes and {*codes} != {NOT_VALID, "gate.refused"}
    return tried.kind == "deliver" and (judged or (engine and not isinstance(trouble, Retryable)))


def promoted(record: Record, now: float, facts: Facts, left: Facts | None, *, sleeps: bool = False) -> Record:
    """Rule 5: the candidate serves. A rollback holds what it left (``left``): a scheduled
    run does not bring it back. ``sleeps``: what served before can stand by asleep.
    """
    candidate, old = _candidate(record), record.serving
    standby = 0.0 if candidate.rollout.standby_mode == "off" else candidate.rollout.standby.seconds
    stands_by = old is not None and old in dict(record.desired.releases)
    asleep = (old,) if old and stands_by and sleeps and standby else record.desired.asleep
    by_rollback = candidate.kind == "rollback"
    ended = _ended(candidate, Outcome.ROLLED_BACK_TO if by_rollback else Outcome.PROMOTED, 0, "", now, facts)
    endings: tuple[Ended, ...] = (ended,)
    held = record.held
    if by_rollback and old is not None and left is not None:
        gone = replace(ended, release=old, attempt=0, outcome=Outcome.ROLLED_BACK_FROM, request="", figures={})
        endings, held = (replace(gone, starts={}, commit=left.commit, args=left.args), ended), left.unchanged
    return replace(
        record,
        serving=candidate.release,
        previous=old or record.previous,
        candidate=None,
        desired=replace(record.desired, asleep=asleep),
        stop_after=now + standby if old else None,
        ended=(*record.ended, *endings),
        held=held,
    )


def ending(
    record: Record,
    outcome: Outcome,
    exit_code: int,
    message: str,
    now: float,
    facts: Facts,
    *,
    by: str = "",
    hold: bool = False,
) -> Record:
    """Withdraw, first: what serves keeps (or gets back) all of the traffic; the candidate
    says how it ends.

    ``by``: the request that ends it; where that is the candidate's own, it goes on with
    another release. ``hold``: a scheduled run does not try the same again.
    """
    candidate = _candidate(record)
    ended = _ended(candidate, outcome, exit_code, message, now, facts)
    ended = replace(ended, request="") if ended.request == by else ended
    address = record.address if record.serving else None
    held = facts.unchanged if hold else record.held
    record = replace(record, desired=record.only_serving, address=address, held=held)
    return _with(record, replace(candidate, ending=ended))


def withdrawn(record: Record) -> Record:
    """Withdraw, second, where the world has followed: the candidate is history. Without
    an ending nothing changes.
    """
    candidate = record.candidate
    if candidate is None or candidate.ending is None:
        return record
    return replace(record, candidate=None, ended=(*record.ended, candidate.ending))


def scaled(record: Record, replicas: int) -> Record:
    """Replicas are not part of what a release is."""
    if replicas == record.replicas:
        return record
    releases = tuple((name, replicas) for name, _ in record.desired.releases)
    return replace(record, replicas=replicas, desired=replace(record.desired, releases=releases))


def standby_over(record: Record, now: float) -> bool:
    return record.candidate is None and record.stop_after is not None and now >= record.stop_after


def stood_in(record: Record, standby: ReleaseId) -> Record:
    """The standby has all of the traffic while what serves is started anew: after a kill
    the record is read as if this had never been.
    """
    return replace(record, desired=replace(record.desired, traffic=((standby, 100),), asleep=()))


def without_standby(record: Record) -> Record:
    """What is left of a promotion goes; its time is cleared when it has gone."""
    return replace(record, desired=record.only_serving)


def standby_gone(record: Record) -> Record:
    return replace(record, stop_after=None)


def taken_down(record: Record) -> Record:
    """Rule 8: nothing serves, nothing is on its way; weights, storage and history
    stay.
    """
    previous = record.serving or record.previous
    return replace(
        record, serving=None, candidate=None, stop_after=None, previous=previous, desired=Wanted(), address=None
    )


def adopted(record: Record, ended: Ended, replicas: int, address: Address | None, runner: Runner) -> Record:
    """What was made by hand serves from now on, as it runs; ``ended`` is how its adoption
    went.
    """
    return replace(
        record,
        serving=ended.release,
        desired=alone(ended.release, replicas),
        address=address,
        replicas=replicas,
        ended=(*record.ended, ended),
        held=None,
        runner=runner,
    )


def restored(record: Record, release: ReleaseId, replicas: int, address: Address) -> Record:
    """A record that was gone, rebuilt from the release that has all of the traffic."""
    return replace(record, serving=release, desired=alone(release, replicas), address=address, replicas=replicas)


def other_gates(record: Record, gates: Gates) -> bool:
    """Were those that what serves has passed others than ``gates``?"""
    passed = (e.gates for e in reversed(record.ended) if e.release == record.serving and e.exit_code == 0 and e.gates)
    return next(passed, None) not in (None, _digest_of(gates))


def live(record: Record, keep: int) -> set[ReleaseId]:
    """Releases that somebody may yet want: what runs, what was before, and the last
    ``keep`` that were promoted.
    """
    passed = dict.fromkeys(e.release for e in reversed(record.ended) if e.exit_code == 0)
    named = {record.serving, record.previous, *(name for name, _ in record.desired.releases), *list(passed)[:keep]}
    return {name for name in named if name is not None}


def shortened(record: Record, history: int) -> tuple[Record, tuple[Ended, ...]]:
    """With the last ``history`` endings, and those that went."""
    return replace(record, ended=record.ended[-history:]), record.ended[:-history]


def _refused_by_others(record: Record, release: ReleaseId, gates: Gates) -> bool:
    last = next((e for e in reversed(record.ended) if e.release == release), None)
    return last is not None and last.outcome == Outcome.GATE_FAILED and last.gates not in ("", _digest_of(gates))


def _digest_of(gates: Gates) -> str:
    return digest(gates.model_dump(mode="json"))


def _candidate(record: Record) -> Candidate:
    if record.candidate is None:
        raise LookupError("a rule of a candidate, and there is none")
    return record.candidate


def _with(record: Record, candidate: Candidate) -> Record:
    return replace(record, candidate=candidate)


def _ended(c: Candidate, outcome: Outcome, code: int, message: str, now: float, facts: Facts) -> Ended:
    return Ended(
        release=c.release,
        attempt=c.attempt,
        outcome=outcome,
        request=c.request,
        exit_code=code,
        at=now,
        commit=facts.commit,
        args=facts.args,
        message=message,
        figures=c.figures,
        report=c.report,
        gates=_digest_of(c.gates) if c.kind == "deliver" else "",
        approval=c.approval,
        starts=c.starts,
        race=c.race,
    )
