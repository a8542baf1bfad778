"""Stories of the protocol, told one by one: a race of loaders, a fault of ours, a serving
release that is down.
"""

from __future__ import annotations

from itertools import product

import pytest

from model_delivery.run.plan import identify
from model_delivery.run.record import Outcome
from model_delivery.values import Ref
from tests.protocol.machine import TARGETS, Runs, lock, spec
from tests.protocol.simulated import ENGINE


@pytest.mark.parametrize("before", [False, True], ids=["first", "beside what serves"])
@pytest.mark.parametrize("strategy", ["canary", "recreate"])
def test_a_race_that_is_killed_anywhere_is_finished_and_has_one_winner(strategy: str, before: bool) -> None:
    """Not in a recreate while nothing serves."""
    wanted, won = spec("raced", strategy, "refuse", 1, "0s"), "default" if before and strategy == "recreate" else "fast"
    for at in range(1, 200):
        runs = Runs()
        runs.prepare("process", 2)
        if before:
            runs.start(None, runs.deliver(spec("a", "blue-green", "refuse", 1, "0s")))
            runs.finish()
        run = runs.start(None, runs.deliver(wanted))
        runs.advance(run, at)
        over = not run.alive
        runs.kill(run)
        again = runs.start(None, runs.deliver(wanted))
        runs.finish()
        now, (new, frozen) = runs.record(), identify(runs.session(runs.place, ""), wanted, lock(wanted), 0)
        assert (now.serving, now.candidate) == (new, None), (at, again.outcome, now)
        assert runs.place.objects[Ref(ENGINE, new)][0].spec["loader"] == won, at
        assert frozen.lock.loader == (None if won == "default" else won)
        assert runs.place.running() == {new}
        started = dict(runs.place.starts)
        again = runs.start(None, runs.deliver(wanted))
        runs.finish()
        assert (again.outcome["result"], runs.place.starts) == ("unchanged", started)
        if over:
            break
    else:
        raise AssertionError("a run of more than two hundred effects")


def test_a_fault_of_ours_withdraws_the_release_as_a_refusal_does() -> None:
    runs = Runs()
    runs.prepare("process", 2)
    run = None
    for label in ("a", "broken"):
        run = runs.start(None, runs.deliver(spec(label, "blue-green", "refuse", 1, "0s")))
        runs.finish()
    now = runs.record()
    assert run is not None
    assert isinstance(run.outcome, ZeroDivisionError)
    assert (now.candidate, now.ended[-1].outcome) == (None, Outcome.FAILED)
    assert "the run broke, and what was on its way was withdrawn" in now.ended[-1].message
    assert runs.place.running() == {now.serving}


@pytest.mark.parametrize(
    ("kind", "strategy"), [*product(TARGETS, ["blue-green"]), *product(["process", "gateway", "t9k"], ["canary"])]
)
@pytest.mark.parametrize("label", ["good", "bad", "dead"])
def test_a_serving_release_that_is_down_holds_up_neither_its_repair_nor_a_refusal(
    kind: str, label: str, strategy: str
) -> None:
    runs = Runs()
    runs.prepare(kind, room=3)
    first = runs.start(None, runs.deliver(spec("a", "blue-green", "refuse", 1, "0s")))
    runs.finish()
    serving = runs.record().serving
    assert first.outcome["result"] == "promoted"
    runs.place.broken.add(str(serving))
    runs.place.tick()
    began = runs.clock.monotonic()
    runs.start(None, runs.deliver(spec(label, strategy, "refuse", 1, "0s")))
    runs.finish()
    assert (runs.record().serving == serving) == (label != "good")
    assert runs.record().candidate is None
    assert runs.clock.monotonic() - began < 100, "nothing waits for what was down before"
