"""Progress goes to whoever listens: the terminal, a Prefect artifact, a step's output."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from model_delivery.base.scrubbing import plain


@dataclass(frozen=True)
class Progress:
    """One line of news. ``done`` and ``total`` are in ``unit`` ("B", "requests", "s",
    ""); ``rate`` is unit/s, ``eta`` seconds.
    """

    step: str
    note: str = ""
    done: float | None = None
    total: float | None = None
    unit: str = ""
    rate: float | None = None
    eta: float | None = None

    def __post_init__(self) -> None:
        for part in ("step", "note"):
            object.__setattr__(self, part, " ".join(plain(getattr(self, part)).splitlines()))

    def line(self) -> str:
        """``fetch: 43 % of 2.8 GB, 410 MB/s, 4 s left``."""
        parts = [self.note] if self.note else []
        if self.done is not None and self.total:
            parts.append(f"{100 * self.done / self.total:.0f} % of {_quantity(self.total, self.unit)}")
        elif self.done is not None:
            parts.append(_quantity(self.done, self.unit))
        if self.rate is not None:
            parts.append(f"{_quantity(self.rate, self.unit)}/s")
        if self.eta is not None:
            parts.append(f"{self.eta:.0f} s left")
        return f"{self.step}: " + ", ".join(parts) if parts else self.step


def _quantity(number: float, unit: str) -> str:
    if unit != "B":
        return f"{number:.4g} {unit}".rstrip()
    for prefix in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.3g} {prefix}B"
        number /= 1000
    return f"{number:.3g} TB"


logging.getLogger("stamina").addHandler(logging.NullHandler())  # its retries are told by our findings alone
logging.getLogger("stamina").propagate = False  # Prefect's console shows what reaches the root

Sink = Callable[[Progress], None]
_sink: ContextVar[Sink | None] = ContextVar("progress_sink", default=None)


def report(progress: Progress) -> None:
    """Hand ``progress`` to the sink of this context; without one it is dropped."""
    sink = _sink.get()
    if sink is not None:
        sink(progress)


@contextmanager
def sink(listener: Sink) -> Iterator[None]:
    """Listen to all progress reported inside the block, in this context and in those
    copied from it.
    """
    token = _sink.set(listener)
    try:
        yield
    finally:
        _sink.reset(token)
