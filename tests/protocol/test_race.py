"""A race of loaders, killed after each of its effects: one has won in the end, and
nothing races again.
"""

from __future__ import annotations

import pytest

from model_delivery.run.plan import identify
from model_delivery.values import Ref
from tests.protocol.machine import lock, spec
from tests.protocol.simulated import ENGINE
from tests.protocol.test_protocol import Deliveries


@pytest.mark.parametrize("before", [False, True], ids=["first", "beside what serves"])
@pytest.mark.parametrize("strategy", ["canary", "recreate"])
def test_a_race_that_is_killed_anywhere_is_finished_and_has_one_winner(strategy: str, before: bool) -> None:
    """Not in a recreate while nothing serves."""
    wanted, won = spec("raced", strategy, "refuse", 1, "0s"), "default" if before and strategy == "recreate" else "fast"
    for at in range(1, 200):
        runs = Deliveries()
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
