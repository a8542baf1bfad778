"""Kills cost seconds each, and ``tests/protocol`` plays every one of them in memory: of
the real ones a seeded sample is taken.

``MODEL_DELIVERY_MOMENTS`` bounds how many (``scripts/test`` sets 3; default: all).
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
SEED = 20261124


def sampled(every: Sequence[T]) -> list[T]:
    """In the order of ``every``."""
    wanted = int(os.environ.get("MODEL_DELIVERY_MOMENTS", len(every)))
    taken = random.Random(SEED).sample(range(len(every)), min(wanted, len(every)))
    return [every[at] for at in sorted(taken)]
