"""Real runs against a real control plane with played pods, killed with SIGKILL before and
after their effects, then run again.

``MODEL_DELIVERY_MOMENTS`` bounds how many moments of each story are taken (seeded;
default: all of them).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from model_delivery.run.lease import REF
from model_delivery.spec import DeliverySpec
from model_delivery.verbs.status import down as take_down
from model_delivery.verbs.status import status
from tests.cluster.control.killed import Result, run
from tests.cluster.control.lab import NAME, Lab
from tests.parts.cluster.waiting import until
from tests.parts.sampling import sampled


def spec(lab: Lab, **more: Any) -> DeliverySpec:
    """Without a load test: its effects are those of the smoke test, and Locust's start is
    most of its time.
    """
    return lab.spec(gates={"smoke": {"max_tokens": 16, **more.pop("smoke", {})}, "throughput": None}, **more)


def deliver(wanted: DeliverySpec, kill_at: int | None = None) -> Result:
    return run("deliver", {"spec": wanted.model_dump(mode="json")}, kill_at)


def moments(whole: Result) -> list[int]:
    """Before the first effect, and after each one: after one is before the next, since
    only effects change the world.
    """
    return sampled([0, *(at for at, (when, _, _) in enumerate(whole.events) if when == "after")])


def converged(lab: Lab, serving: str | None) -> None:
    """One release serves, alone and with all of the traffic; nothing is left to change,
    and nothing of a step, a lease or another release.
    """
    place, record = lab.place, lab.record
    assert (record.candidate, record.serving) == (None, serving)
    world = place.world(NAME)
    assert lab.running(world) == ([serving] if serving else [])
    assert lab.routed_to(world) == serving
    runtimes = [ref for ref in world.objects if ref.kind.name in ("MLServiceRuntime", "ServingRuntime")]
    assert len(runtimes) == (1 if serving and lab.kind != "deployment" else 0)
    until(lambda: released(lab) == ({serving} if serving else set()), 30, "the pods of another release do not end")
    assert place.get(NAME, REF) is None
    assert not jobs(lab) or record.ended[-1].exit_code != 0
    until(lambda: all(jobs(lab)), 30, "a step's Job does not end")
    assert status(place, NAME).changes == ()
    ended = [(e.release, e.attempt, e.outcome) for e in record.ended if e.outcome != "rolled back from"]
    assert len(ended) == len(set(ended))


def released(lab: Lab) -> set[str]:
    """Whose pods there are: a controller that has been told to end a release takes its
    time.
    """
    labels = [pod["metadata"]["labels"] for pod in lab.place.world(NAME).beside["Pod"]]
    return {one["model-delivery/release"] for one in labels if one["model-delivery/role"] == "release"}


def jobs(lab: Lab) -> list[bool]:
    """Of each step's Job: has it finished? Its status follows its pods'."""
    return [
        bool(seen.status["finished"]) for ref, seen in lab.place.world(NAME).objects.items() if ref.kind.name == "Job"
    ]


@dataclass(frozen=True)
class Story:
    """``before`` prepares; ``make`` is what is delivered; ``ends``: the exit code of an
    undisturbed run.
    """

    name: str
    before: Callable[[Lab], object]
    make: Callable[[Lab], DeliverySpec]
    ends: int = 0


def down(lab: Lab) -> object:
    return take_down(lab.place, NAME) if NAME in lab.place.deliveries() else None


def served(lab: Lab) -> object:
    if NAME in lab.place.deliveries() and lab.record.serving is not None:
        return None
    done = deliver(spec(lab))
    assert done.code == 0, done.said
    return done


STORIES = (
    Story("first", down, spec),
    Story("second", served, spec),
    Story("recreate", served, lambda lab: spec(lab, rollout={"strategy": "recreate"})),
    Story("refused", served, lambda lab: spec(lab, smoke={"expect": "Atlantis"}), ends=4),
)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_a_killed_delivery_converges_on_the_rerun(lab: Lab, story: Story) -> None:
    story.before(lab)
    whole = deliver(story.make(lab))
    assert whole.code == story.ends, whole.said
    for at in moments(whole):
        story.before(lab)
        old = lab.record.serving
        wanted = story.make(lab)
        assert deliver(wanted, kill_at=at).code is None, f"no effect number {at}"
        again = deliver(wanted)
        assert again.code == story.ends, (whole.events[at], again.said)
        converged(lab, again.said["release"] if story.ends == 0 else old)


@pytest.mark.timeout(3600)
def test_a_killed_rollback_converges_on_the_rerun(lab: Lab) -> None:
    served(lab)
    assert deliver(spec(lab)).code == 0
    where = {"kind": lab.kind, "namespace": lab.namespace}
    goal = lab.record.previous
    whole = run("rollback", {"name": NAME, "to": goal, "where": where})
    assert whole.code == 0, whole.said
    converged(lab, goal)
    for at in moments(whole):
        goal = lab.record.previous
        assert run("rollback", {"name": NAME, "to": goal, "where": where}, at).code is None
        again = run("rollback", {"name": NAME, "to": goal, "where": where})
        assert again.code == 0, (whole.events[at], again.said)
        converged(lab, goal)
