"""A load, and when its requests are to start: seeded, so that a run can be repeated."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from model_delivery.measure.profile import Profile


@dataclass(frozen=True)
class Plan:
    """``profile`` says what is asked, ``users`` (closed loop) or ``rate`` per second
    (open loop) how often.

    Times are in s. ``within``: bounds in ms that a request must keep to count for
    goodput, by metric.
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


def schedule(kind: str, rate: float, seed: str, part: int = 0, parts: int = 1) -> Iterator[float]:
    """Intended starts in s from the beginning, absolute, for one of ``parts`` that share
    ``rate`` (requests/s).

    Poisson processes of a part of the rate each add up to one of the whole; constant ones
    interleave.
    """
    dice, mean, constant = random.Random(f"{seed}/{part}"), parts / rate, kind == "constant"  # noqa: S311
    at = part / rate - mean if constant else 0.0
    while True:
        at += mean if constant else dice.expovariate(1 / mean)
        yield at
