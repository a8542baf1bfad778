"""An end to what may wait for ever: a call gets so many seconds in all, whatever
trickles in.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextvars import ContextVar, copy_context
from threading import Event, Thread
from typing import TypeVar

T = TypeVar("T")

stopped: ContextVar[Event] = ContextVar("stopped")


class Stopped(Exception):
    """What this is for has failed elsewhere."""


def within(seconds: float, call: Callable[[], T]) -> T:
    """What ``call`` gives. TimeoutError when that takes longer, Stopped when
    ``stopped`` is set: its thread is left behind then, and ends with the process at
    the latest.
    """
    given, until = Future[T](), time.monotonic() + seconds

    def run() -> None:
        try:
            given.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            given.set_exception(error)

    Thread(target=copy_context().run, args=(run,), daemon=True).start()
    while not wait([given], 0.2).done:
        if (stop := stopped.get(None)) and stop.is_set():
            raise Stopped
        if time.monotonic() > until:
            raise TimeoutError(f"no answer within {seconds:.0f} s")
    return given.result()
