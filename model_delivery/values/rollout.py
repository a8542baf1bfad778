"""A rollout as values: the stages between what serves and what shall serve."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from model_delivery.base.findings import Finding, Refused
from model_delivery.values.release import Capabilities, Desired, Release

Gate = Literal["smoke", "throughput"]
ALL_GATES: tuple[Gate, ...] = ("smoke", "throughput")


@dataclass(frozen=True)
class Stage:
    """``desired`` is put in place, waited for, and judged by ``gates`` before the next one."""

    name: str
    desired: Desired
    gates: tuple[Gate, ...] = ()


def stages(strategy: str, old: Desired, new: Release, weights: tuple[int, ...], can: Capabilities) -> tuple[Stage, ...]:
    """The stages from ``old`` (what serves now, alone) to ``new`` with all of the traffic.

    A recreate tests the new release before it gives it traffic, where the target can have a release without any; where it cannot
    (``dark_first``), the new one takes the place of the old in one write.
    Refused: canary where traffic cannot be weighed, or where slots of 5 % cannot hold a step.
    """
    everything = {new.id: 100}
    dark = replace(old, releases=(*old.releases, new))
    promote = Stage("promote", replace(old, releases=(new, *old.releases), traffic=everything))
    alone = replace(old, releases=(new,), traffic=everything)
    if not old.releases or strategy == "recreate":
        first = Stage("dark", replace(alone, traffic={}) if can.dark_first else alone, ALL_GATES)
        stop = (Stage("stop", replace(old, releases=(), traffic={})),) if old.releases and can.dark_first else ()
        return (*stop, first, Stage("promote", alone))
    if strategy == "blue-green":
        return (Stage("dark", dark, ALL_GATES), promote)
    if can.weights == "none":
        raise Refused(
            Finding(
                "todo",
                "rollout.strategy canary is refused",
                "this target cannot weigh traffic",
                "use strategy: blue-green",
            )
        )
    odd = [w for w in weights if can.weights == "slots" and w % 5]
    if odd:
        raise Refused(
            Finding(
                "todo",
                f"rollout.steps {odd} are refused",
                "this target moves traffic in steps of 5 %",
                "use multiples of 5",
            )
        )
    (serving,) = old.releases
    middle = tuple(
        Stage(f"canary-{w}", replace(dark, traffic={serving.id: 100 - w, new.id: w}), ALL_GATES) for w in weights
    )
    return (Stage("dark", dark, ALL_GATES), *middle, promote)
