"""Weights are read ahead in a pod where a spec says so, as many as fit; the hook that
does it never fails.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from model_delivery.targets.deployment import DeploymentPayload
from model_delivery.targets.kserve import KServe, KServeKey, KServePayload
from tests.parts.asked import asked
from tests.unit.test_deployment import LOCK, PLAIN
from tests.unit.test_warming import SIZE, cached, cold


def engine(**serving: Any) -> dict[str, Any]:
    made = PLAIN.payload(asked(**serving), LOCK)
    assert isinstance(made, DeploymentPayload)
    (found,) = made.deployment["spec"]["template"]["spec"]["containers"]
    return dict(found)


def command(**serving: Any) -> list[str]:
    hook: list[str] = engine(readahead=True, **serving)["lifecycle"]["postStart"]["exec"]["command"]
    return hook


def test_a_spec_that_says_nothing_of_it_makes_the_release_that_it_always_made() -> None:
    assert set(engine()["lifecycle"]) == {"preStop"}
    assert PLAIN.payload(asked(readahead=False), LOCK) == PLAIN.payload(asked(), LOCK)
    assert "readahead" not in asked().model_dump(mode="json")["serving"]
    assert asked(readahead=True).model_dump(mode="json")["serving"]["readahead"] is True


def test_it_reads_the_folder_that_the_engine_loads_from_within_the_limit() -> None:
    limited = engine(readahead=True, resources={"limits": {"memory": "8Gi"}})
    assert set(limited["lifecycle"]) == {"preStop", "postStart"}
    *_, folder, most = limited["lifecycle"]["postStart"]["exec"]["command"]
    assert (folder, int(most)) == (limited["args"][1], 8 << 20)
    made = KServe(KServeKey(namespace="ns")).payload(asked(readahead=True), LOCK)
    assert isinstance(made, KServePayload)
    (served,) = made.runtime["spec"]["containers"]
    assert served["lifecycle"]["postStart"]["exec"]["command"][4] == "/mnt/models"


def run(hook: list[str], folder: Path, most: int) -> None:
    """Until its reader has ended, too."""
    waits = hook[2].replace("&\nexit 0", "").replace(">/dev/null 2>&1", ">/dev/null")
    subprocess.run([*hook[:2], waits, hook[3], folder, str(most)], check=True)


def test_as_many_are_read_as_fit_and_no_more(tmp_path: Path) -> None:
    first, second = cold(tmp_path / "a.safetensors"), cold(tmp_path / "b.safetensors")
    run(command(), tmp_path, SIZE * 3 // 2 // 1024)
    assert (cached(first), cached(second)) == (SIZE, 0)
    run(command(), tmp_path, SIZE * 4 // 1024)
    assert cached(second) == SIZE


@pytest.mark.parametrize("folder", ["/nowhere", "/proc"])
def test_the_hook_has_ended_well_before_anything_is_read(folder: str) -> None:
    hook = command()
    done = subprocess.run([*hook[:4], folder, hook[5]], capture_output=True, timeout=5, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
