"""A load, and when its requests are to start: seeded, so that a run can be repeated."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from model_delivery.measure.profile import Profile

SLICES = 120


@dataclass(frozen=True)
class Plan:
    """``profile`` says what is asked, ``users`` (closed loop) or ``rate`` per second (open loop) how often; times in s.

    ``within``: bounds in ms that a request must keep to count for goodput, by metric key.
    """

    model: str
    profile: Profile
    users: int | None = 1
    rate: float | None = None
    warmup: float = 0
    duration: float = 60
    seed: int = 1
    processes: int = 1
    within: dict[str, float] = field(default_factory=dict)

    @property
    def step(self) -> float:
        """The width of the report's slices of time, in s: at most 120 of them."""
        return max(1.0, math.ceil(self.duration / SLICES))


def schedule(kind: str, rate: float, seed: str, part: int = 0, parts: int = 1) -> Iterator[float]:
    """Intended starts in s from the beginning, on an absolute schedule, for one of ``parts`` that share ``rate`` (requests/s).

    Poisson processes of a part of the rate each add up to one of the whole; constant ones interleave.
    """
    dice, at = random.Random(f"{seed}/{part}"), 0.0  # noqa: S311
    mean = parts / rate
    if kind == "constant":
        at = part / rate - mean
    while True:
        at += mean if kind == "constant" else dice.expovariate(1 / mean)
        yield at
