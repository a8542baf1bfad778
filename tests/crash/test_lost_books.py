"""A delivery whose books somebody took away: its weights stay, or come back before an
engine needs them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil
import pytest

from model_delivery.base import Refused
from model_delivery.models.manifest import MANIFEST, WORK
from model_delivery.spec import DeliverySpec
from model_delivery.targets.process import ENGINE
from model_delivery.values import LEASE, Ref, Resource
from model_delivery.verbs.models import collect
from model_delivery.verbs.status import down, status
from tests.crash.lab import NAME, Lab


def delivered(lab: Lab, spec: DeliverySpec | None = None) -> Path:
    """The folder of the weights."""
    done = lab.deliver(spec or lab.untested())
    assert done.code == 0, done.said
    (manifest,) = lab.home.rglob(MANIFEST)
    return manifest.parent


def sizes(weights: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in weights.iterdir() if path.name != MANIFEST}


def take(lab: Lab, *names: str) -> None:
    for name in names:
        path = lab.host.folder(NAME) / name
        path.rename(lab.home.parent / name.replace("/", "-"))


@pytest.mark.parametrize(
    "gone", [("objects/Record",), ("objects/Release",), ("objects/Record", "objects/Release")], ids=" ".join
)
def test_gc_keeps_the_weights_of_an_engine_whose_books_are_gone(lab: Lab, gone: tuple[str, ...]) -> None:
    weights = delivered(lab)
    take(lab, *gone)
    assert collect(lab.home, dry_run=False) == ()
    assert weights.is_dir()
    assert lab.host.deliveries() == (NAME,), "`list` tells of what runs"
    if gone == ("objects/Record",):
        assert status(lab.host, NAME).serving


@pytest.mark.parametrize(
    "gone",
    [("objects",), ("objects/Engine", "objects/Release"), ("objects/Record", "objects/Release", "objects/Engine")],
    ids=" ".join,
)
def test_gc_is_refused_by_name_where_nothing_says_what_a_delivery_needs(lab: Lab, gone: tuple[str, ...]) -> None:
    weights = delivered(lab)
    take(lab, *gone)
    with pytest.raises(Refused, match=f"the books of {NAME} are gone"):
        collect(lab.home, dry_run=False)
    assert weights.is_dir()


def test_gc_is_refused_by_name_where_the_books_of_what_is_down_are_gone(lab: Lab) -> None:
    weights = delivered(lab)
    down(lab.host, NAME)
    take(lab, "objects")
    with pytest.raises(Refused, match=f"the books of {NAME} are gone"):
        collect(lab.home, dry_run=True)
    assert weights.is_dir()


def test_gc_is_not_stopped_by_a_run_that_ended_before_it_began_a_release(lab: Lab) -> None:
    weights = delivered(lab)
    lab.host.put(Resource(Ref(LEASE, "lease"), "lease", "early", {"pid": 1}))
    (lab.home / "deliveries" / "of-a-cluster" / "reports").mkdir(parents=True)
    (weights.parent / ("0" * 40) / WORK).mkdir(parents=True)
    assert [item.path.name for item in collect(lab.home, dry_run=False)] == ["0" * 40]
    assert weights.is_dir()


@pytest.mark.parametrize(
    ("engine", "lost"), [("live", "all of them"), ("dead", "all of them"), ("dead", "a file"), ("live", "the manifest")]
)
def test_lost_weights_come_back_before_an_engine_needs_them(lab: Lab, engine: str, lost: str) -> None:
    spec = lab.untested()
    weights = delivered(lab, spec)
    there = sizes(weights)
    serving = str(lab.record.serving)
    process = psutil.Process(lab.host.world(NAME).objects[Ref(ENGINE, serving)].status["pid"])
    match lost:
        case "all of them":
            shutil.rmtree(weights)
        case "a file":
            max(weights.iterdir(), key=lambda path: path.stat().st_size).unlink()
        case "the manifest":
            (weights / MANIFEST).unlink()
    if engine == "dead":
        process.kill()
        while lab.host.process(NAME, Ref(ENGINE, serving)).alive:
            lab.host.hint(NAME, 0.1)
    again = lab.deliver(spec)
    assert (again.code, again.said.get("result")) == (0, "healed"), again.said
    assert sizes(weights) == there
    assert (weights / MANIFEST).exists()
    done = [ref.partition("/")[0] for when, verb, ref in again.events if (when, verb) == ("after", "put")]
    assert done.index("Step") < (done.index("Engine") if engine == "dead" else len(done))
    lab.converged(serving)
    assert lab.deliver(spec).said["result"] == "unchanged"


def test_lost_weights_that_cannot_come_back_are_told_and_what_serves_goes_on(lab: Lab) -> None:
    spec = lab.untested()
    shutil.rmtree(delivered(lab, spec))
    gone = lab.model.rename(lab.model.with_name("elsewhere"))
    try:
        assert lab.deliver(spec).code != 0
        assert lab.answers()["data"]
    finally:
        gone.rename(lab.model)
    assert lab.deliver(spec).said["result"] == "healed"
