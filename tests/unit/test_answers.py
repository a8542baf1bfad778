"""What a request comes to, by its record alone."""

from __future__ import annotations

from model_delivery.run import rules
from model_delivery.run.record import Record
from model_delivery.run.rules import Answer
from model_delivery.targets.process import ProcessKey
from model_delivery.values import Address, Gates, Rollout


def test_a_scheduled_run_leaves_what_waits_for_a_person_alone_but_not_what_it_has_asked_for_itself() -> None:
    record = rules.proposed(Record(ProcessKey(kind="process")), "new", "r1", Rollout(), Gates(), Address("h", 1))
    record = rules.asked(record, 1e9)
    answers = {who: rules.answer(record, "new", "spec", who, scheduled=True) for who in ("r1", "r2")}
    assert answers == {"r1": Answer.GOES_ON, "r2": Answer.AWAITING}
    assert rules.answer(record, "new", "spec", "r2", scheduled=False) is Answer.GOES_ON
