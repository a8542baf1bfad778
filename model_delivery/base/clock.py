"""A clock that wait, lease and soak are handed, so that their tests need no real time."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """``now`` is seconds since the epoch (it is written to disk); ``monotonic`` is for
    measuring; ``sleep`` takes seconds.
    """

    def now(self) -> float: ...
    def monotonic(self) -> float: ...
    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's own."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
