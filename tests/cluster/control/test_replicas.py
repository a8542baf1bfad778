"""One replica of two that is bad: behind the Service each request may find the other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model_delivery.base import GateFailed
from model_delivery.flows.deliver import deliver
from model_delivery.verbs.status import status
from tests.cluster.control.lab import ENGINE, NAME, Lab, delivering_lab
from tests.parts.cluster import Cluster
from tests.parts.cluster.played import PlayedNode
from tests.parts.timing_engine import build

TWO: dict[str, Any] = {
    "gates": {"smoke": {"max_tokens": 16}, "throughput": None},
    "serving": {"replicas": {"min": 2, "max": 2}},
    "storage": {"claim": f"{NAME}-models", "size": "1Gi", "storage_class": "late", "access": "ReadWriteMany"},
}
ONE_BAD = """#!/bin/sh
hostname=$2
mkdir {folder}/taken 2>/dev/null && printf %s "$hostname" >{folder}/bad && set -- "$@" --wrong-answer
exec {engine} "$@"
"""


@pytest.fixture(params=["deployment", "t9k", "kserve"])
def lab(
    request: pytest.FixtureRequest, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: PlayedNode
) -> Iterator[Lab]:
    if request.param != "deployment":
        request.getfixturevalue(request.param)
    with delivering_lab(cluster, tmp_path, monkeypatch, node, kind=request.param) as made:
        yield made


def replicas(lab: Lab, tmp_path: Path) -> dict[str, dict[str, Any]]:
    """What the newest report says of each."""
    newest = max((tmp_path / "home").rglob("report.json"), key=lambda file: file.stat().st_mtime)
    checks = json.loads(newest.read_text())["smoke"]["checks"]
    return {check["replica"]: check for check in checks if "replica" in check}


def test_a_bad_replica_is_refused_by_its_pods_name_and_what_served_still_does(lab: Lab, tmp_path: Path) -> None:
    serves = deliver.fn(lab.spec(**TWO))["release"]
    told = replicas(lab, tmp_path)
    assert len(told) == 2
    assert all(serves in name for name in told)
    assert all("'Paris' is in" in check["detail"] for check in told.values()), told

    one_bad = tmp_path / "engine.sh"
    one_bad.write_text(ONE_BAD.format(folder=tmp_path, engine=build()))
    one_bad.chmod(0o755)
    lab.node.entrypoints[ENGINE] = (one_bad, "--host", "0.0.0.0")
    try:
        with pytest.raises(GateFailed) as refused:
            deliver.fn(lab.spec(**TWO))
    finally:
        lab.node.entrypoints[ENGINE] = (build(), "--host", "0.0.0.0")
    at = {player.address: player.pod["metadata"]["name"] for player in lab.node.players.values()}
    (bad,) = [name for name, check in replicas(lab, tmp_path).items() if not check["passed"]]
    assert (tmp_path / "bad").read_text().split(".")[1:] in [a.split(".")[1:] for a, name in at.items() if name == bad]
    (found,) = [found for found in refused.value.findings if found.code == "gate.replica"]
    assert bad in found.what
    assert lab.record.serving == serves
    assert (status(lab.place, NAME).state, status(lab.place, NAME).changes) == ("up", ())
