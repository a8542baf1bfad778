"""What stands still is healed, and what was refused is searched: killed at any effect,
the next run finishes or undoes it.
"""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.crash.lab import NAME, Lab
from tests.crash.test_crash_matrix import moments
from tests.parts.sampling import sampled

SLEEPS: dict[str, Any] = {"standby": "30m", "standby_mode": "sleep"}
RUNS: dict[str, Any] = {"standby": "30m"}


@pytest.fixture
def hasty(lab: Lab, tmp_path: Path) -> Lab:
    """Its engine has three seconds to start, so a probe has no more either."""
    folder = tmp_path / "hasty"
    shutil.copytree(lab.engine, folder)
    text = (folder / "engine.toml").read_text()
    (folder / "engine.toml").write_text(text.replace('timeout = "20s"', 'timeout = "3s"'))
    lab.engine = folder
    return lab


def wedge(lab: Lab) -> psutil.Process:
    """What serves generates nothing any more; all else of it answers."""
    found = lab.host.world(NAME).objects
    serving = next(o for ref, o in found.items() if ref.name == lab.record.serving and "port" in o.status)
    engine = psutil.Process(serving.status["pid"])
    engine.send_signal(signal.SIGUSR1)
    return engine


@pytest.mark.parametrize("rollout", [SLEEPS, RUNS, {}], ids=["a sleeper", "a running standby", "no standby"])
def test_a_healing_that_is_killed_is_finished_by_the_next_run(hasty: Lab, rollout: dict[str, Any]) -> None:
    assert hasty.deliver(hasty.untested(**rollout)).code == 0
    old = hasty.record.serving
    spec = hasty.untested(**rollout)
    assert hasty.deliver(spec).code == 0
    new = hasty.record.serving
    wedge(hasty)
    whole = hasty.deliver(spec)
    assert (whole.code, whole.said["result"]) == (0, "healed"), whole.said
    for at in sampled(moments(whole.events)):
        wedged = wedge(hasty)
        assert hasty.deliver(spec, kill_at=at).code is None, f"no effect number {at}"
        again = hasty.deliver(spec)
        assert again.code == 0, (whole.events[at], again.said)
        assert hasty.record.serving == new
        assert hasty.token()
        assert not wedged.is_running() or wedged.status() == psutil.STATUS_ZOMBIE
        kept = {name for name, _ in hasty.record.desired.releases}
        assert kept == ({old, new} if rollout else {new})


def test_a_search_that_is_killed_leaves_what_serves_and_can_be_made_again(lab: Lab) -> None:
    from model_delivery.flows.bisect import bisect

    bounds = {"ttft_p95_max": "50ms"}
    good = lab.spec(slo=bounds)
    assert lab.deliver(good).code == 0
    serving = lab.record.serving
    content = good.model_dump(mode="json")
    content["serving"]["args"] += ["--tokens", "17", "--ttft", "200"]
    bad = type(good).model_validate(content)
    assert lab.deliver(bad).code == 4
    whole = lab.run(lambda: bisect.fn(bad))
    assert whole.code == 0, whole.said
    for at in sampled(moments(whole.events)):
        assert lab.run(lambda: bisect.fn(bad), kill_at=at).code is None, f"no effect number {at}"
        back = lab.deliver(good)
        assert (back.code, back.said["result"]) == (0, "unchanged"), (whole.events[at], back.said)
        lab.converged(serving)
    again = lab.run(lambda: bisect.fn(bad))
    assert again.code == 0, again.said
    lab.converged(serving)
