"""How often a waiting run looks: never above the budget, and always again. On a clock of
its own.
"""

from __future__ import annotations

import random
from collections import deque
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from model_delivery.places.cluster import pace as pacing
from model_delivery.places.cluster.pace import Pace

MINUTE, WAIT = 60.0, 1800.0


class World:
    """An API server that is asked, on a clock that only waiting moves. ``changes``: how
    many pods' changes a second.
    """

    def __init__(self, changes: float) -> None:
        self.now, self.asked, self.rate = 1000.0, deque[float](maxlen=1000), changes
        self.client = SimpleNamespace(asked=self.asked)
        self.look = SimpleNamespace(changes=self.changes, price=1)
        self.random = random.Random(20261126)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def ask(self, requests: int) -> None:
        for _ in range(requests):
            self.asked.append(self.now)
            self.now += 0.01

    def changes(self, _: str, seconds: float) -> bool:
        self.ask(1)
        next_change = self.random.expovariate(self.rate) if self.rate else seconds + 1
        self.now += min(next_change, seconds)
        return next_change < seconds


@pytest.mark.parametrize("cost", [3, 11, 17, 24, 40])
@pytest.mark.parametrize("changes", [0.0, 0.05, 0.5, 5.0])
@pytest.mark.parametrize("before", [0, 30, 55])
def test_a_waiting_run_looks_again_and_again_within_its_budget(
    monkeypatch: pytest.MonkeyPatch, cost: int, changes: float, before: int
) -> None:
    """``cost``: the requests of a look; ``before``: those of the effects before the
    wait.
    """
    world = World(changes)
    monkeypatch.setattr(pacing, "time", world)
    pace: Any = Pace(world.client, world.look)  # type: ignore[arg-type]
    world.ask(before)
    pace.restart()
    start, looks = world.now, list[float]()
    while world.now < start + WAIT:
        world.ask(cost)
        world.look.price = cost
        looks.append(world.now)
        pace.wait("small", start + WAIT - world.now)
    gaps = [later - earlier for earlier, later in pairwise(looks)]
    assert max(gaps) <= 2 * MINUTE
    waited = [at for at in world.asked if at >= start + cost * 0.01]
    busiest = max(sum(at <= other < at + MINUTE for other in waited) for at in waited)
    assert busiest <= 60
