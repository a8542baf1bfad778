"""Watches: they tell which kinds have changed since they were listed, never what is
there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from model_delivery.base import Trouble
from model_delivery.places.cluster.client import Broken, Client, Status
from model_delivery.values import Kind

LIFE = 120  # seconds; a connection that died unseen is no longer believed then
REST = 30.0  # before a watch that was refused or cut is tried again
Event = tuple[Kind, Mapping[str, Any] | None]


class Watches:
    """One stream a kind, read by a thread of its own; it ends by itself."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._told = SimpleQueue[Event]()
        self._again = dict[Kind, float]()  # when it may begin anew, on the monotonic clock; infinite: it is read now

    def alive(self, kind: Kind) -> bool:
        return self._again.get(kind) == float("inf")

    def may_begin(self, kind: Kind) -> bool:
        return time.monotonic() >= self._again.get(kind, 0.0)

    def follow(self, kind: Kind, query: Mapping[str, Any], since: str) -> None:
        """From the list of that resourceVersion on."""
        if since and self.may_begin(kind):
            self._again[kind] = float("inf")
            query = {**query, "watch": "1", "timeoutSeconds": str(LIFE), "resourceVersion": since}
            Thread(target=self._read, args=(kind, query), daemon=True).start()

    def _read(self, kind: Kind, query: Mapping[str, Any]) -> None:
        began = time.monotonic()
        try:
            for line in self._client.lines(kind.path(self._client.namespace), query, LIFE + REST):
                self._told.put((kind, json.loads(line)))
        except (Broken, Status, Trouble, ValueError):
            pass
        finally:
            now = time.monotonic()
            self._again[kind] = now + (0 if now - began > LIFE / 2 else REST)
            self._told.put((kind, None))

    def told(self, seconds: float) -> Iterator[Event]:
        """What was told, waiting up to ``seconds`` for the first; a kind with None: what
        changes now is not told.
        """
        try:
            yield self._told.get(timeout=max(0.0, seconds))
            while True:
                yield self._told.get_nowait()
        except Empty:
            return
