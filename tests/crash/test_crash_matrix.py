"""Real runs, killed with SIGKILL before and after their effects, then run again: always
converged, nothing doubled, nothing orphaned.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest

from model_delivery.places.host import launcher
from model_delivery.spec import DeliverySpec
from tests.crash.lab import Event, Lab
from tests.parts.sampling import SEED, sampled

pytestmark = pytest.mark.timeout(1800)  # a hundred runs each; deadlines that matter are the product's own


def moments(events: tuple[Event, ...]) -> list[int]:
    """When to kill: before the first effect, and after each one.

    Only effects change the world, so after one is before the next. Of an unbroken row of
    slots (twenty times the same effect) the moments after the first, after one in the
    middle and after the last are taken. ``tests/protocol`` plays every one.
    """
    after = [at for at, (when, _, _) in enumerate(events) if when == "after"]
    slots = [events[at][2].startswith("Slot/") for at in after]
    inner = [n for n in range(1, len(after) - 1) if slots[n - 1] and slots[n] and slots[n + 1]]
    kept = {random.Random(SEED).choice(inner)} if inner else set[int]()
    return [0, *(at for n, at in enumerate(after) if n not in inner or n in kept)]


@dataclass(frozen=True)
class Story:
    """``make`` is delivered to a lab whose state ``before`` prepared; ``ends`` is the
    exit code of an undisturbed run, ``other`` how another spec is rolled out.
    """

    name: str
    before: Callable[[Lab], object]
    make: Callable[[Lab], DeliverySpec]
    ends: int = 0
    other: dict[str, Any] = field(default_factory=dict)


def first(lab: Lab) -> object:
    if lab.home.exists():
        from model_delivery.verbs.status import down

        down(lab.host, "crash")
    return None


def served(lab: Lab, *args: str, **more: Any) -> object:
    if lab.home.exists() and lab.record.serving is not None:
        return None
    return lab.deliver(lab.untested(*args, **more))


def card(lab: Lab) -> tuple[str, str]:
    """What one engine at a time can hold."""
    return "--card", str(lab.home.parent / "card")


WHOLE: dict[str, Any] = {"cpus": len(os.sched_getaffinity(0)), "when_full": "recreate"}
ASLEEP: dict[str, Any] = WHOLE | {"standby": "30m", "standby_mode": "sleep"}
STORIES = (
    Story("first", first, lambda lab: lab.spec()),
    Story("second", served, lambda lab: lab.spec()),
    Story("recreate", served, lambda lab: lab.spec(strategy="recreate")),
    Story(
        "both do not fit",
        lambda lab: served(lab, **WHOLE),
        lambda lab: lab.untested(**WHOLE),
        other={"when_full": "recreate"},
    ),
    Story("refused", served, lambda lab: lab.spec(slo={"ttft_p95_max": "1ms"}), ends=4),
    Story(
        "one card",
        lambda lab: served(lab, *card(lab), **ASLEEP),
        lambda lab: lab.untested(*card(lab), **ASLEEP),
        other=WHOLE,
    ),
)


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_a_killed_delivery_converges_on_the_rerun(lab: Lab, story: Story) -> None:
    story.before(lab)
    whole = lab.deliver(story.make(lab))
    assert whole.code == story.ends, whole.said
    for at in sampled(moments(whole.events)):
        story.before(lab)
        old = lab.record.serving
        spec = story.make(lab)
        assert lab.deliver(spec, kill_at=at).code is None, f"no effect number {at}"
        again = lab.deliver(spec)
        assert again.code == story.ends, (whole.events[at], again.said)
        lab.converged(again.said["release"] if story.ends == 0 else old)


def test_a_killed_rollback_converges_on_the_rerun(lab: Lab) -> None:
    lab.deliver(lab.spec())
    lab.deliver(lab.spec())
    goal = lab.record.previous
    whole = lab.rollback(goal)
    assert whole.code == 0, whole.said
    lab.converged(goal)
    for at in sampled(moments(whole.events)):
        goal = lab.record.previous
        assert lab.rollback(goal, kill_at=at).code is None, f"no effect number {at}"
        again = lab.rollback(goal)
        assert again.code == 0, (whole.events[at], again.said)
        lab.converged(goal)


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_a_recovery_that_is_killed_too_converges(lab: Lab, story: Story) -> None:
    story.before(lab)
    whole = lab.deliver(story.make(lab))
    dice, twice = random.Random(SEED), 0
    for at in dice.sample(moments(whole.events), 2):
        story.before(lab)
        old, spec = lab.record.serving, story.make(lab)
        assert lab.deliver(spec, kill_at=at).code is None
        twice += lab.deliver(spec, kill_at=dice.randrange(8)).code is None
        again = lab.deliver(spec)
        assert again.code == story.ends, (whole.events[at], again.said)
        lab.converged(again.said["release"] if story.ends == 0 else old)
    assert twice, "no recovery was long enough to be killed"


def test_a_rollback_whose_recovery_is_killed_too_converges(lab: Lab) -> None:
    lab.deliver(lab.untested())
    lab.deliver(lab.untested())
    whole = lab.rollback(lab.record.previous)
    dice, twice = random.Random(SEED), 0
    for at in dice.sample(moments(whole.events), 3):
        goal = lab.record.previous
        assert lab.rollback(goal, kill_at=at).code is None
        twice += lab.rollback(goal, kill_at=dice.randrange(8)).code is None
        assert lab.rollback(goal).code == 0
        lab.converged(goal)
    assert twice


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_after_a_crash_another_spec_is_delivered_instead(lab: Lab, story: Story) -> None:
    story.before(lab)
    whole = lab.deliver(story.make(lab))
    for at in random.Random(SEED).sample(moments(whole.events), 2):
        story.before(lab)
        lab.deliver(story.make(lab), kill_at=at)
        other = lab.deliver(lab.untested(**story.other))
        assert other.code == 0, (whole.events[at], other.said)
        lab.converged(other.said["release"])


def test_a_rerun_of_an_unchanged_world_starts_nothing(lab: Lab) -> None:
    spec = lab.spec()
    done = lab.deliver(spec)
    before = {p.pid for p in lab.processes()}
    again = lab.deliver(spec)
    assert again.said["result"] == "unchanged"
    assert {p.pid for p in lab.processes()} == before
    kinds = {ref.split("/")[0] for _, _, ref in again.events}
    assert kinds <= {"Record"}, again.events
    lab.converged(done.said["release"])


def test_a_launcher_killed_before_its_exec_is_started_again(lab: Lab) -> None:
    killed: list[int] = []

    def hunt(run: int) -> None:
        parent = psutil.Process(run)
        while parent.status() != psutil.STATUS_ZOMBIE:
            for child in parent.children():
                try:
                    if not killed and str(launcher.__file__) in child.cmdline():
                        child.kill()
                        killed.append(child.pid)
                except psutil.NoSuchProcess:
                    continue
            if killed:
                return

    done = lab.deliver(lab.spec(), meanwhile=hunt)
    assert killed
    assert done.code == 0, done.said
    lab.converged(done.said["release"])
