"""A steady load on a service, and what became of each request of it."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.parts.golang import build

SOURCES = Path(__file__).parent


class Steady:
    """Counts by outcome; ``ok`` is a whole answer, ``reset`` none at all on a connection
    that had served before. ``longest``: seconds, of a whole stream; ``failed``: at which
    seconds streams failed. ``connections``, and of them those that ended in a ``reset``:
    by the name of the engine behind them.
    """

    def __init__(self, url: str, model: str, **flags: float | str | bool) -> None:
        words = [f"-{name}={str(value).lower()}" for name, value in flags.items()]
        command = [str(build(SOURCES)), f"-url={url}", f"-model={model}", *words]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.probes, self.streams, self.longest = Counter[str](), Counter[str](), 0.0
        self.connections, self.resets = Counter[str](), Counter[str]()
        self.failed = list[float]()

    def end(self) -> None:
        """What is open is read to its end."""
        said: dict[str, Any] = json.loads(self._process.communicate()[0])
        self.probes, self.streams, self.longest = Counter(said["Probes"]), Counter(said["Streams"]), said["Longest"]
        self.connections, self.resets = Counter(said["Connections"]), Counter(said["Resets"])
        self.failed = [round(at, 1) for at in said["Failed"] or ()]


@contextmanager
def steady(url: str, model: str, **flags: float | str | bool) -> Iterator[Steady]:
    """From the beginning of the block to its end."""
    made = Steady(url, model, **flags)
    try:
        yield made
    finally:
        made.end()
