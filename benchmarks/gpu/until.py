"""The Locust user of this project, until the file that ``UNTIL`` names is there: what was
sent by then is read to its end, and counted.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gevent
from locust import events

from model_delivery.loadtests.user import LOAD, StreamUser
from model_delivery.measure.reader import clock

__all__ = ["StreamUser"]


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def begin(**_: Any) -> None:
    gevent.spawn(_end_when_told)


def _end_when_told() -> None:
    while not Path(os.environ["UNTIL"]).exists():
        gevent.sleep(0.1)
    LOAD.recorder.close_at = min(LOAD.recorder.close_at, clock())
