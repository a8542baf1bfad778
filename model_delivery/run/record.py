"""The record of a delivery: what serves, what was before, what is being tried, and how
earlier tries ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from textwrap import shorten
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError

from model_delivery.base import Count, Finding, Moment, Permanent, problems, short
from model_delivery.targets import AnyKey
from model_delivery.values import Address, Gates, Phase, ReleaseId, Rollout, Runner, StageKind, StoredPhase, Strategy

STRICT = ConfigDict(extra="forbid")


def _in_order(told: Mapping[Phase, float]) -> Mapping[Phase, float]:
    """A cluster stores keys sorted."""
    return {phase: told[phase] for phase in Phase if phase in told}


Starts = Annotated[Mapping[Phase, Moment], AfterValidator(_in_order)]  # seconds from a start's beginning


class Outcome(StrEnum):
    """How an attempt ended; ``ROLLED_BACK_FROM`` is of the release that a rollback
    left, ``TRIED`` of one that a search made.
    """

    PROMOTED = "promoted"
    ADOPTED = "adopted"
    ROLLED_BACK_TO = "rolled back to"
    ROLLED_BACK_FROM = "rolled back from"
    REFUSED = "refused"
    GATE_FAILED = "gate failed"
    NOT_APPROVED = "not approved"
    FAILED = "failed"
    REPLACED = "replaced"
    ROLLED_BACK = "rolled back"
    CANCELLED = "cancelled"
    TRIED = "tried"


@dataclass(frozen=True)
class Wanted:
    """``Desired`` in words that survive a crash: release ids with replicas, percent of
    the traffic, and which of them sleep.
    """

    __pydantic_config__ = STRICT

    releases: tuple[tuple[ReleaseId, Count], ...] = ()
    traffic: tuple[tuple[ReleaseId, Count], ...] = ()
    asleep: tuple[ReleaseId, ...] = ()


@dataclass(frozen=True)
class Approval:
    """What a person is asked before a candidate gets traffic, until ``until`` (seconds
    since the epoch), and what they said: ``promote`` is None while nobody has.
    """

    __pydantic_config__ = STRICT

    until: Moment
    promote: bool | None = None
    by: str = ""
    reason: str = ""

    def words(self) -> str:
        """What was said, by whom and why."""
        said = "nobody has answered" if self.promote is None else "approved" if self.promote else "refused"
        return f"{said}{f' by {self.by}' if self.by else ''}{f': {self.reason}' if self.reason else ''}"


@dataclass(frozen=True)
class Lap:
    """A timed start of a release with one of its engine's loaders; ``out``: why it does
    not count.
    """

    __pydantic_config__ = STRICT

    loader: str
    starts: Starts = field(default_factory=dict)
    out: str = ""


@dataclass(frozen=True)
class Race:
    """``won``: the loader of all later starts, empty while nobody knows."""

    __pydantic_config__ = STRICT

    laps: tuple[Lap, ...] = ()
    won: str = ""


@dataclass(frozen=True)
class Ended:
    """How an attempt ended; ``figures`` are metric names with their values, ``at``
    seconds since the epoch; ``gates``: a digest of those that judged it, empty where
    none did.
    """

    __pydantic_config__ = STRICT

    release: ReleaseId
    attempt: Count
    outcome: Outcome
    request: str
    exit_code: Count
    at: Moment
    commit: str = ""
    args: tuple[str, ...] = ()
    message: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    report: str | None = None
    gates: str = ""
    approval: Approval | None = None
    starts: Starts = field(default_factory=dict)
    race: Race | None = None

    def why(self, most: int = 200) -> str:
        """The first line of what it ended with; where it ended well, who approved it."""
        approved = self.approval.words() if self.approval else ""
        first = self.message.partition("\n")[0] if self.exit_code else approved
        return shorten(short(first, 4 * most), most, placeholder=" …")


@dataclass(frozen=True)
class Candidate:
    """The release on its way. ``rollout`` is that of its start: a rerun goes on with it,
    and with the ``gates`` of its own spec.

    ``strategy`` is the one that was really chosen, None before its first stage.
    """

    __pydantic_config__ = STRICT

    release: ReleaseId
    kind: Literal["deliver", "rollback"]
    attempt: Count
    phase: StoredPhase
    request: str
    rollout: Rollout
    gates: Gates
    strategy: Strategy | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    report: str | None = None
    ending: Ended | None = None
    approval: Approval | None = None
    starts: Starts = field(default_factory=dict)
    race: Race | None = None


@dataclass(frozen=True)
class Record:
    """Written whole, by compare and swap; each change is a rule's (``run/rules.py``).

    ``runner``: of the last request by spec. ``stop_after``: when a standby ends, seconds
    since the epoch.
    """

    __pydantic_config__ = STRICT

    target: AnyKey
    address: Address | None = None
    serving: ReleaseId | None = None
    previous: ReleaseId | None = None
    candidate: Candidate | None = None
    desired: Wanted = Wanted()
    replicas: Count = 1
    stop_after: Moment | None = None
    ended: tuple[Ended, ...] = ()
    held: str | None = None
    runner: Runner = field(default_factory=Runner)
    record_version: Literal[2] = 2

    @property
    def active(self) -> bool:
        """Does anything serve, or is anything on its way?"""
        return self.serving is not None or self.candidate is not None

    @property
    def only_serving(self) -> Wanted:
        """Nothing but what serves, with all of the traffic."""
        return alone(self.serving, self.replicas) if self.serving else Wanted()

    @property
    def beside_serving(self) -> frozenset[ReleaseId]:
        """Releases that run and do not serve: a candidate, a standby."""
        return frozenset(name for name, _ in self.desired.releases) - {self.serving}

    def attempt_of(self, release: ReleaseId) -> int:
        """The next attempt's number: one above the highest that ended."""
        return 1 + max((e.attempt for e in self.ended if e.release == release), default=0)

    def answered(self, request: str) -> Ended | None:
        """How the request has ended, None when it has not."""
        return next((e for e in reversed(self.ended) if request and e.request == request), None)

    def raced(self, release: ReleaseId) -> Race | None:
        """How its loaders raced, of the candidate or when it last ended."""
        now = self.candidate.race if self.candidate and self.candidate.release == release else None
        return now or next((e.race for e in reversed(self.ended) if e.release == release and e.race), None)

    def rolled_back_from(self) -> set[ReleaseId]:
        """Releases that a rollback left: a bare ``rollback`` never picks them."""
        return {e.release for e in self.ended if e.outcome == Outcome.ROLLED_BACK_FROM}


def alone(release: ReleaseId, replicas: int) -> Wanted:
    """One release with all of the traffic."""
    return Wanted(releases=((release, replicas),), traffic=((release, 100),))


_RECORD: TypeAdapter[Record] = TypeAdapter(Record)
_ENDED: TypeAdapter[Ended] = TypeAdapter(Ended)


def dump(record: Record) -> dict[str, Any]:
    """As it is stored: plain JSON."""
    return dict(_RECORD.dump_python(record, mode="json"))


def dump_ended(ended: Ended) -> dict[str, Any]:
    return dict(_ENDED.dump_python(ended, mode="json"))


def load(stored: Mapping[str, Any]) -> Record:
    """Read a stored record back, an older version's too. Permanent where this version
    cannot read it.
    """
    try:
        return _sound(_RECORD.validate_python(_upgraded(stored)))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        why = problems(error)[0] if isinstance(error, ValidationError) else f"{type(error).__name__}: {error}"
        where = "a file below objects/Record on a host, the ConfigMap NAME-record in a cluster"
        fix = f"a newer Model Delivery may read it; where somebody damaged it, remove it ({where}): "
        fix += "the next `deliver up` makes it again from what runs"
        raise Permanent(Finding("record.unreadable", "the delivery's record cannot be read", why, fix)) from None


def _sound(record: Record) -> Record:
    """Whatever somebody wrote into it: what serves, and nothing is on its way, is wanted
    with all of the traffic.
    """
    serving, wanted = record.serving, record.desired
    whole = ((serving, 100),)
    sound = serving in dict(wanted.releases) and wanted.traffic == whole and serving not in wanted.asleep
    if serving is None or record.candidate or sound:
        return record
    others = tuple((name, count) for name, count in wanted.releases if name != serving)
    asleep = tuple(name for name in wanted.asleep if name != serving)
    return replace(record, desired=Wanted(((serving, record.replicas), *others), ((serving, 100),), asleep))


def _upgraded(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """Version 1 left the strategy to be inferred."""
    if stored.get("record_version", 1) != 1:
        return stored
    candidate = stored.get("candidate")
    if candidate and "strategy" not in candidate:
        candidate = candidate | {"strategy": _inferred(candidate, stored)}
    return {**stored, "record_version": 2, "candidate": candidate}


def _inferred(candidate: Mapping[str, Any], stored: Mapping[str, Any]) -> str | None:
    phase, running = candidate["phase"], {name for name, _ in stored["desired"]["releases"]}
    if phase == StageKind.FETCH:
        return None
    if phase == StageKind.STOP or (phase in (StageKind.DARK, StageKind.PROMOTE) and stored["serving"] not in running):
        return "recreate"
    wished: str = candidate["rollout"].get("strategy", "blue-green")
    return "blue-green" if candidate["kind"] == "rollback" and wished == "canary" else wished
