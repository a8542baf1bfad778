"""The record of a delivery: what serves, what was before, what is being tried, and how earlier tries ended."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model_delivery.base.findings import Finding, Permanent
from model_delivery.targets import AnyKey
from model_delivery.values.gates import Gates, Rollout
from model_delivery.values.release import Address, ReleaseId
from model_delivery.values.serving import Runner


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Wanted(_Part):
    """``Desired`` in words that survive a crash: release ids with replicas, and percent of the traffic."""

    releases: tuple[tuple[ReleaseId, int], ...] = ()
    traffic: tuple[tuple[ReleaseId, int], ...] = ()


class Candidate(_Part):
    """The release on its way. ``rollout`` and ``gates`` are those of its start: a rerun goes on with them."""

    release: ReleaseId
    kind: Literal["deliver", "rollback"]
    attempt: int
    phase: str
    request: str
    rollout: Rollout
    gates: Gates
    figures: dict[str, float] = Field(default_factory=dict)
    report: str | None = None
    ending: Ended | None = None


class Ended(_Part):
    """How an attempt ended; ``figures`` are metric names with their values, ``at`` seconds since the epoch."""

    release: ReleaseId
    attempt: int
    outcome: str
    request: str
    exit_code: int
    at: float
    commit: str = ""
    args: tuple[str, ...] = ()
    message: str = ""
    figures: dict[str, float] = Field(default_factory=dict)
    report: str | None = None


class Record(_Part):
    """Written whole, by compare and swap; every phase of a delivery is one write. ``runner``: of the last request by spec."""

    record_version: Literal[1] = 1
    target: AnyKey
    address: Address | None = None
    serving: ReleaseId | None = None
    previous: ReleaseId | None = None
    candidate: Candidate | None = None
    desired: Wanted = Wanted()
    replicas: int = 1
    stop_after: float | None = None
    ended: tuple[Ended, ...] = ()
    held: str | None = None
    runner: Runner = Runner()

    def only_serving(self) -> Wanted:
        """Nothing but what serves, with all of the traffic."""
        if self.serving is None:
            return Wanted()
        return Wanted(releases=((self.serving, self.replicas),), traffic=((self.serving, 100),))

    def attempt_of(self, release: ReleaseId) -> int:
        """The next attempt's number: one above the highest that ended."""
        return 1 + max((e.attempt for e in self.ended if e.release == release), default=0)

    def rolled_back_from(self) -> set[ReleaseId]:
        """Releases that a rollback left: a bare ``rollback`` never picks them."""
        return {e.release for e in self.ended if e.outcome == "rolled back from"}


def load(spec: Any) -> Record:
    """Read a stored record back. Permanent where this version cannot read it."""
    try:
        return Record.model_validate(spec)
    except ValidationError as error:
        first = error.errors()[0]
        why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise Permanent(
            Finding(
                "todo",
                "the delivery's record cannot be read",
                why,
                "use the version of Model Delivery that wrote it, or a newer one",
            )
        ) from None


Candidate.model_rebuild()
