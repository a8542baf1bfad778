"""The Locust user of this project, until the file that ``UNTIL`` names is there: what was
sent by then is read to its end, and counted. Nothing is sent twice: a request on a kept
connection that has gone counts as failed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gevent
from locust import events

from model_delivery.loadtests import user
from model_delivery.loadtests.connection import Connection
from model_delivery.loadtests.user import LOAD, StreamUser
from model_delivery.measure.reader import Stream, clock

__all__ = ["StreamUser"]


class OneTry(Connection):
    """Does not send again what a kept connection did not answer."""

    tried = False

    def request(self, *args: Any, **more: Any) -> Stream:
        self.tried = False
        return super().request(*args, **more)

    def _attempt(self, raw: bytes, stream: Stream, limit: int, within: float) -> None:
        if self.tried:
            stream.error, stream.start = "no answer on a kept connection", clock()
            return
        self.tried = True
        super()._attempt(raw, stream, limit, within)


user.Connection = OneTry  # type: ignore[misc]


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def begin(**_: Any) -> None:
    gevent.spawn(_end_when_told)


def _end_when_told() -> None:
    while not Path(os.environ["UNTIL"]).exists():
        gevent.sleep(0.1)
    LOAD.recorder.close_at = min(LOAD.recorder.close_at, clock())
