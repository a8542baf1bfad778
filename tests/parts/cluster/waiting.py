"""Waiting for a part that tells nobody when it is ready."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(answer: Callable[[], T | None], timeout: float, why_not: str | Callable[[], str], pause: float = 0.1) -> T:
    """The first true ``answer``; RuntimeError with ``why_not`` after ``timeout``
    seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        found = answer()
        if found:
            return found
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {timeout:.0f} s: {why_not if isinstance(why_not, str) else why_not()}")
        time.sleep(pause)
