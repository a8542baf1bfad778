"""Kills cost seconds each, and ``tests/protocol`` plays every one of them in memory: of
the real ones a seeded sample is taken.

``MODEL_DELIVERY_MOMENTS`` bounds how many (``scripts/test`` sets 1; default: all).
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
SEED = 20261124


def sampled(every: Sequence[T], stories: int = 1, seed: int = SEED) -> list[T]:
    """In the order of ``every``; where ``stories`` share the bound, this one's part."""
    bound = int(os.environ.get("MODEL_DELIVERY_MOMENTS", stories * len(every)))
    taken = random.Random(seed).sample(range(len(every)), min(max(1, bound // stories), len(every)))
    return [every[at] for at in sorted(taken)]
