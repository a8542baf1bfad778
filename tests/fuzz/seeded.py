"""Hostile inputs by seed.

``MODEL_DELIVERY_INPUTS``: how many of each part; ``MODEL_DELIVERY_SEED``: the first (a
failure names its own, to be played again with ``MODEL_DELIVERY_INPUTS=1``). An input
fails when it ends in an exception that is none of the house's (a user would see a
traceback), is not over at its deadline, or takes the process above its memory.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

INPUTS = int(os.environ.get("MODEL_DELIVERY_INPUTS", "100"))
FIRST = int(os.environ.get("MODEL_DELIVERY_SEED", "0"))
SHARES = 4
TOLD = 8
MEMORY = 200 << 20  # beyond what the process has before it: some 100 MB with all that it imports
GUARD = 4 << 30  # beyond it an allocation fails: what reads without a bound must not take the machine with it

Dice = random.Random


def shares() -> list[range]:
    """The seeds of a part, in as many shares as workers may play side by side."""
    every = range(FIRST, FIRST + INPUTS)
    return [every[start::SHARES] for start in range(min(SHARES, INPUTS))]


class Late(BaseException):
    """Nothing catches it but the test."""


def play(seeds: range, part: Callable[[Dice], object], deadline: float) -> None:
    """Play ``part`` with each seed; AssertionError tells what failed, each with its
    seed.
    """
    failed = []
    for seed in seeds:
        try:
            with _within(deadline), _guarded():
                part(Dice(seed))
        except (Exception, Late) as error:
            failed.append(f"MODEL_DELIVERY_SEED={seed}: {_told(error)}")
        if len(failed) == TOLD:
            break
    if failed:
        pytest.fail("\n\n".join(failed), pytrace=False)


def _told(error: BaseException) -> str:
    return "".join(traceback.format_exception(error, limit=-6))[-2000:]


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    def late(*_: object) -> None:
        raise Late(f"not over after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _guarded() -> Iterator[None]:
    """Inside, the peak is counted."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (GUARD, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert (taken := _peak() - before) < MEMORY, f"{taken >> 20} MiB were taken"


def _peak() -> int:
    """Bytes of memory that this process had at once."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) << 10
