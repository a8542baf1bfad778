"""Progress goes to whoever listens: the terminal, a Prefect artifact, a step's output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """One line of news. ``done`` and ``total`` are in ``unit`` ("B", "requests", "s", ""); ``rate`` is unit/s, ``eta`` seconds."""

    step: str
    note: str = ""
    done: float | None = None
    total: float | None = None
    unit: str = ""
    rate: float | None = None
    eta: float | None = None


Sink = Callable[[Progress], None]
_sink: ContextVar[Sink | None] = ContextVar("progress_sink", default=None)


def report(progress: Progress) -> None:
    """Hand ``progress`` to the sink of this context; without one it is dropped."""
    sink = _sink.get()
    if sink is not None:
        sink(progress)


@contextmanager
def sink(listener: Sink) -> Iterator[None]:
    """Listen to all progress reported inside the block, in this context and in those copied from it."""
    token = _sink.set(listener)
    try:
        yield
    finally:
        _sink.reset(token)
