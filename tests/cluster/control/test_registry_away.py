"""A registry that does not answer: what an image's tag names now is unknown, and nothing
changes for it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from model_delivery.base import Refused, Retryable
from model_delivery.flows.deliver import deliver
from model_delivery.spec import DeliverySpec
from model_delivery.verbs.plan import plan
from tests.cluster.control.lab import ENGINE, Lab, delivering_lab
from tests.parts.cluster import Cluster
from tests.parts.cluster.played import PlayedNode
from tests.unit.test_registry import Registry, running

SMOKE_ONLY = {"smoke": {"max_tokens": 16}, "throughput": None}
OTHER = "sha256:" + "b" * 64


@pytest.fixture
def lab(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: PlayedNode) -> Iterator[Lab]:
    with delivering_lab(cluster, tmp_path, monkeypatch, node) as made:
        yield made


def image(lab: Lab) -> str:
    serves = lab.record.serving
    assert serves is not None
    return str(
        lab.cluster.kubectl("get", f"deployment/small-{serves}", "-n", lab.namespace, "-o", "jsonpath={..image}")
    )


def by_cli(verb: str, spec: DeliverySpec, folder: Path) -> str:
    file = folder / "spec.yaml"
    file.write_text(yaml.safe_dump(spec.model_dump(mode="json", by_alias=True, exclude_none=True)))
    command = [str(Path(sys.executable).with_name("deliver")), verb, str(file)]
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True, timeout=120
    ).stdout


def test_nothing_changes_while_a_registry_is_away_and_a_new_release_keeps_the_digest(lab: Lab, tmp_path: Path) -> None:
    with running(Registry()) as registry:
        pinned = f"{registry.host}/a/b@{registry.digest}"
        lab.node.entrypoints[pinned] = lab.node.entrypoints[ENGINE]
        given: dict[str, Any] = {"gates": SMOKE_ONLY, "target": {"image": f"{registry.host}/a/b:v1"}}
        first, second = lab.spec(**given), lab.spec(**given)
        registry.status = 503
        with pytest.raises(Retryable, match=r"image\.registry-busy"):
            deliver.fn(first)
        registry.status = 200
        release = deliver.fn(first)["release"]
        assert plan(lab.place, first).notes == ()

        registry.status = 429
        seen = plan(lab.place, first)
        assert (seen.release, seen.changes) == (release, ())
        assert "image.unknown" in seen.notes[0]
        assert f"whether {registry.host}/a/b:v1 has moved is unknown" in seen.notes[0]
        for verb in ("plan", "up"):
            told = by_cli(verb, first, tmp_path)
            assert "small: unchanged" in told
            assert release in told
            assert f"it stays at {pinned} of the last record" in told
            assert "[image.unknown]" in told
        assert deliver.fn(second)["result"] == "promoted"
        assert pinned in image(lab)

        other = lab.spec(**given | {"target": {"image": f"{registry.host}/a/b:v2"}})
        with pytest.raises(Refused, match="there is no image"):
            plan(lab.place, other)
        registry.wants = "Basic"
        with pytest.raises(Refused, match="does not let us see"):
            plan(lab.place, second)
        registry.wants, registry.status, registry.digest = "", 200, OTHER
        moved = plan(lab.place, second)
        assert (moved.notes, moved.result) == ((), "new release")
    away = plan(lab.place, second)
    assert "does not answer" in away.notes[0]
    assert away.changes == ()
    with pytest.raises(Retryable, match="does not answer"):
        plan(lab.place, other)
