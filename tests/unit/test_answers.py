"""What a request comes to, by its record alone."""

from __future__ import annotations

from model_delivery.base import Finding, GateFailed, Permanent, Retryable, Trouble
from model_delivery.run import rules
from model_delivery.run.record import Outcome, Record
from model_delivery.run.rules import Answer
from model_delivery.targets.process import ProcessKey
from model_delivery.values import Address, Gates, Rollout


def test_a_scheduled_run_leaves_what_waits_for_a_person_alone_but_not_what_it_has_asked_for_itself() -> None:
    record = rules.proposed(Record(ProcessKey(kind="process")), "new", "r1", Rollout(), Gates(), Address("h", 1))
    record = rules.asked(record, 1e9)
    answers = {who: rules.answer(record, "new", "spec", Gates(), who, scheduled=True) for who in ("r1", "r2")}
    assert answers == {"r1": Answer.GOES_ON, "r2": Answer.AWAITING}
    assert rules.answer(record, "new", "spec", Gates(), "r2", scheduled=False) is Answer.GOES_ON


def test_what_a_gate_refused_is_held_until_its_gates_change_too_and_what_a_rollback_left_is_not_freed_by_that() -> None:
    strict = Gates(throughput=None)
    record = rules.proposed(Record(ProcessKey(kind="process")), "new", "r1", Rollout(), strict, Address("h", 1))
    facts = rules.Facts("c", (), "spec")
    refused = rules.withdrawn(rules.ending(record, Outcome.GATE_FAILED, 4, "too slow", 0.0, facts, hold=True))
    assert rules.answer(refused, "new", "spec", strict, "r2", scheduled=True) is Answer.HELD
    assert rules.answer(refused, "new", "spec", Gates(), "r2", scheduled=True) is Answer.NEW
    left = rules.withdrawn(rules.ending(record, Outcome.NOT_APPROVED, 4, "no", 0.0, facts, hold=True))
    assert rules.answer(left, "new", "spec", Gates(), "r2", scheduled=True) is Answer.HELD


def test_what_could_not_be_judged_is_not_held_and_what_a_gate_or_the_engine_said_is() -> None:
    record = rules.proposed(Record(ProcessKey(kind="process")), "new", "r1", Rollout(), Gates(), Address("h", 1))
    tried = record.candidate
    assert tried is not None

    def held(kind: type[Trouble], *codes: str) -> bool:
        return rules.at_fault(tried, kind(*(Finding(code, "it is so") for code in codes)))

    assert not held(GateFailed, "gate.not-valid", "gate.refused")
    assert held(GateFailed, "gate.not-valid", "gate.error-rate", "gate.refused")
    assert held(Permanent, "engine.bad-argument")
    assert not held(Retryable, "engine.out-of-memory")
    assert not held(Permanent, "host.no-room")
