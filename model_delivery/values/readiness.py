"""How far something is: what a target, or a diagnosis, says of what a place sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from model_delivery.base import Finding
from model_delivery.values.resources import Ref


@dataclass(frozen=True)
class Current:
    """Ready; ``endpoint`` is the base URL of this release (or of the route)."""

    endpoint: str


@dataclass(frozen=True)
class Server:
    """One engine of a release that is ready, where it listens itself. ``ref``: the object
    whose end starts it anew; ``life``: tells it from the one after.
    """

    ref: Ref
    host: str
    port: int
    life: str

    @property
    def url(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


class Phase(StrEnum):
    """What an engine's start comes by, in this order; not every engine by each."""

    SCHEDULED = "scheduled"
    PULLED = "image pulled"
    PROCESS = "process up"
    WEIGHTS = "weights"
    COMPILED = "compiled"
    WARM = "warmed up"
    HEALTHY = "healthy"
    ANSWERED = "first token"


@dataclass(frozen=True)
class Start:
    """How far a start is that ``began`` (seconds since the epoch): the phases it has come
    by, and when; None: nobody says when. ``kept``: it goes on with what an earlier start
    compiled. ``findings``: what it goes on without.
    """

    began: float
    reached: Mapping[Phase, float | None]
    kept: bool = False
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class InProgress:
    """It may yet come. ``fix``: what helps where it does not, if ``why`` tells. ``last``:
    the last line of its log.
    """

    why: str
    fix: str = ""
    last: str = ""


@dataclass(frozen=True)
class Absent(InProgress):
    """The object itself is not there, or ends so: who waits may put it again."""


@dataclass(frozen=True)
class Failed:
    """It will not become ready by waiting. ``retryable``: starting it again may help."""

    finding: Finding
    retryable: bool = False


@dataclass(frozen=True)
class Started:
    """A step is at work, or its work is done: its output can be read, and its own lines
    begin with ``mark``. ``beside``: what else of it goes on.
    """

    mark: str = ""
    beside: str = ""


@dataclass(frozen=True)
class Ended:
    """All of a step has ended, its own part with the exit code ``code`` (None: nobody
    knows).
    """

    mark: str = ""
    code: int | None = None


Readiness = Current | InProgress | Failed
StepState = Started | Ended | InProgress | Failed
