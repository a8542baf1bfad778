"""Two releases of a cluster beside each other, by what the cluster keeps of their load
tests: whoever delivered them, and wherever that ran, is gone.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model_delivery.flows.deliver import deliver
from tests.cluster.control.lab import NAME, Lab, delivering_lab
from tests.parts.cluster import Cluster
from tests.parts.cluster.played import PlayedNode

LOAD = {"profile": "smoke", "users": 2, "warmup": "0s", "duration": "1s", "repeats": 3, "slo": {"error_rate_max": 0}}


@pytest.fixture
def lab(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: PlayedNode) -> Iterator[Lab]:
    with delivering_lab(cluster, tmp_path, monkeypatch, node) as made:
        yield made


def compared(lab: Lab, *words: str | Path, code: int = 0) -> dict[str, Any]:
    return dict(json.loads(lab.deliver("compare", *words, "-n", lab.namespace, "--json", code=code).stdout))


def test_two_releases_are_compared_by_the_reports_that_the_cluster_keeps(lab: Lab, tmp_path: Path) -> None:
    releases = []
    for ttft in ("50", "200"):
        gates = {"smoke": {"max_tokens": 16}, "throughput": LOAD}
        args = ["--ttft", ttft, "--itl", "1", "--tokens", ttft]
        releases.append(deliver.fn(lab.spec(gates=gates, serving={"args": args}))["release"])
        shutil.rmtree(tmp_path / "home", ignore_errors=True)
    old, new = (f"{NAME}@{release}" for release in releases)
    picture = tmp_path / "both.png"
    told = compared(lab, old, NAME, "--picture", picture)
    assert (told["a"]["named"], told["b"]["named"]) == (old, new), "a bare name is what serves"
    assert (told["a"]["runs"], told["b"]["runs"]) == (3, 3)
    figures = {figure["name"]: figure for figure in told["figures"]}
    assert figures["ttft_p95"]["words"] == "worse"
    assert figures["ttft_p95"]["change"] > 1
    assert '--ttft: "50" → "200"' in told["differs"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    refused = compared(lab, old, new, "--max-regression", "5%", code=4)
    assert "gate.regression" in json.dumps(refused)
    assert compared(lab, new, old, "--max-regression", "5%")["b"]["named"] == old
    lab.deliver("history", NAME, "-n", lab.namespace, "--reports", tmp_path / "saved")
    saved = tmp_path / "saved" / f"{NAME}-{releases[0]}-1"
    assert compared(lab, saved, new)["figures"] == told["figures"], "the same report, as a file and in the cluster"
    unknown = compared(lab, f"{NAME}@nope", NAME, code=2)
    assert unknown["error"]["code"] == "compare.no-release"
