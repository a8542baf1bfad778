"""A rollout as values: the stages between what serves and what shall serve."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PlainSerializer

from model_delivery.base import Finding, Refused
from model_delivery.values.release import Capabilities, Desired, Release

Strategy = Literal["canary", "blue-green", "recreate"]
Gate = Literal["smoke", "throughput"]
ALL_GATES: tuple[Gate, ...] = ("smoke", "throughput")


class StageKind(StrEnum):
    """In the order in which a candidate meets them; not every strategy has all of
    them.
    """

    FETCH = "fetch"
    STOP = "stop"
    DARK = "dark"
    NAP = "nap"
    CANARY = "canary"
    PROMOTE = "promote"


@dataclass(frozen=True)
class Phase:
    """How far a candidate is: the stage that it has entered; a canary's with its percent
    of the traffic.
    """

    kind: StageKind
    weight: int | None = None

    def __str__(self) -> str:
        return self.kind.value if self.weight is None else f"{self.kind}-{self.weight}"

    @property
    def words(self) -> str:
        """For people."""
        return self.kind.value if self.weight is None else f"{self.kind} {self.weight} %"

    @classmethod
    def read(cls, text: Any) -> Any:
        """``canary-10`` back into a phase; ValueError for what is none."""
        if not isinstance(text, str):
            return text
        kind, _, weight = text.partition("-")
        return cls(StageKind(kind), int(weight) if weight else None)


StoredPhase = Annotated[Phase, BeforeValidator(Phase.read), PlainSerializer(str)]
FETCH = Phase(StageKind.FETCH)


@dataclass(frozen=True)
class Stage:
    """``desired`` is put in place, waited for, and judged by ``gates`` before the next
    one.
    """

    phase: Phase
    desired: Desired
    gates: tuple[Gate, ...] = ()

    @property
    def watched(self) -> bool:
        """Is it looked after for a time, once it is in place and has passed?"""
        return self.phase.kind in (StageKind.CANARY, StageKind.PROMOTE)

    def share(self, release: Release) -> int:
        """Percent of the traffic that ``release`` gets."""
        return self.desired.shares.get(release.id, 0)

    def words(self, release: Release) -> str:
        """For people: a gate that is met with all of the traffic is said so."""
        at_once = self.gates and self.desired.shares == {release.id: 100}
        return f"{self.phase} (with all of the traffic at once)" if at_once else str(self.phase)


def stages(
    strategy: Strategy,
    old: Desired,
    new: Release,
    weights: tuple[int, ...],
    can: Capabilities,
    *,
    sleep: bool = False,
    wakes: bool = False,
    nap: bool = False,
) -> tuple[Stage, ...]:
    """The stages from ``old`` (what serves now, alone) to ``new`` with all of the
    traffic.

    A recreate tests the new release before it gives it traffic, where the target can have
    a release without any; where it cannot (``dark_first``), the new one takes the place
    of the old in one write. With ``sleep`` the old one gives its cards back in its sleep,
    where it can, and stays; ``wakes``: the new one sleeps until then; ``nap``: it sleeps
    once before it gets traffic, since a first sleep is slow, and the next is in the way
    of a rollback.

    Refused: canary where traffic cannot be weighed, or where slots of 5 % cannot hold a
    step.
    """
    dark, promote = Phase(StageKind.DARK), Phase(StageKind.PROMOTE)
    everything = {new.id: 100}
    beside = replace(old, releases=(*old.releases, new))
    sleepers = tuple(release for release in old.releases if sleep and can.sleep and release.payload.sleeps)
    asleep = replace(old, releases=sleepers, traffic={}, asleep=frozenset(release.id for release in sleepers))
    alone = replace(asleep, releases=(new, *sleepers), traffic=everything)
    if not old.releases or strategy == "recreate":
        first = Stage(dark, replace(alone, traffic={}) if can.dark_first else alone, ALL_GATES)
        both = replace(asleep, releases=(*sleepers, new), asleep=asleep.asleep | {new.id}) if wakes else asleep
        stop = Stage(Phase(StageKind.STOP), both)
        naps = strategy == "recreate" and nap and sleep and can.sleep and new.payload.sleeps
        rest = Stage(Phase(StageKind.NAP), replace(alone, traffic={}, asleep=asleep.asleep | {new.id}))
        before = (stop,) if old.releases and can.dark_first else ()
        return (*before, first, *((rest,) if naps else ()), Stage(promote, alone))
    last = Stage(promote, replace(old, releases=(new, *old.releases), traffic=everything))
    if strategy == "blue-green":
        return (Stage(dark, beside, ALL_GATES), last)
    _weighable(weights, can)
    (serving,) = old.releases
    canaries = tuple(
        Stage(Phase(StageKind.CANARY, w), replace(beside, traffic={serving.id: 100 - w, new.id: w}), ALL_GATES)
        for w in weights
    )
    return (Stage(dark, beside, ALL_GATES), *canaries, last)


def _weighable(weights: tuple[int, ...], can: Capabilities) -> None:
    if can.weights == "none":
        what, why = "rollout.strategy canary is refused", "this target cannot weigh traffic"
        raise Refused(Finding("rollout.cannot-weigh", what, why, "use strategy: blue-green"))
    odd = [w for w in weights if can.weights == "slots" and w % 5]
    if odd:
        what, why = f"rollout.steps {odd} are refused", "this target moves traffic in steps of 5 %"
        raise Refused(Finding("rollout.uneven-steps", what, why, "use multiples of 5"))
