"""Reports and evidence stay in the cluster: whoever delivered, and wherever that ran, may
be gone.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model_delivery.base import GateFailed, Permanent
from model_delivery.flows.deliver import deliver
from model_delivery.measure.report import parse
from model_delivery.run import evidence
from model_delivery.run.record import Ended, Outcome
from model_delivery.spec import DeliverySpec
from tests.cluster.control.lab import NAME, Lab, delivering_lab
from tests.parts.cluster import Cluster
from tests.parts.cluster.played import PlayedNode

SMOKE_ONLY = {"smoke": {"max_tokens": 16}, "throughput": None}


@pytest.fixture
def lab(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: PlayedNode) -> Iterator[Lab]:
    with delivering_lab(cluster, tmp_path, monkeypatch, node) as made:
        yield made


def delivered(spec: DeliverySpec, home: Path) -> dict[str, Any]:
    """As in a run's pod: when it is over, nothing that it wrote locally is left."""
    try:
        return deliver.fn(spec)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def config_maps(lab: Lab) -> dict[str, dict[str, Any]]:
    found = json.loads(
        lab.cluster.kubectl("get", "configmap", "-n", lab.namespace, "-l", "model-delivery/kind=Report", "-o", "json")
    )
    return {f"configmap/{one['metadata']['name']}": one for one in found["items"]}


def repeated(**slo: Any) -> dict[str, Any]:
    load = {"profile": "smoke", "users": 2, "warmup": "0s", "duration": "300ms", "repeats": 3, "max_regression": 0.5}
    return {"smoke": {"max_tokens": 16}, "throughput": {**load, "slo": {"error_rate_max": 0, **slo}}}


def test_a_report_outlives_its_run_and_is_what_the_next_release_is_compared_with(lab: Lab, tmp_path: Path) -> None:
    home = tmp_path / "home"
    first = delivered(lab.spec(gates=repeated()), home)
    (ended,) = lab.record.ended
    assert first["report"] == ended.report == f"configmap/{NAME}-report-{first['release']}-1"
    done = subprocess.run(
        [Path(sys.executable).with_name("deliver"), "history", NAME, "-n", lab.namespace, "--reports", str(tmp_path / "saved")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert first["release"] in done.stdout
    saved = tmp_path / "saved" / f"{NAME}-{first['release']}-1"
    assert {file.name for file in saved.iterdir()} == {"report.json", "report.html", "metrics.prom", "throughput.png"}
    load = parse((saved / "report.json").read_bytes()).throughput
    assert load is not None
    assert [pod.requests is not None for pod in load.server] == [True], "the figures of the one pod, by its own address"
    assert f"{NAME}-{first['release']}" not in load.server[0].url
    (one,) = config_maps(lab).values()
    assert (
        gzip.decompress(base64.b64decode(one["binaryData"]["report.html.gz"])) == (saved / "report.html").read_bytes()
    )
    assert not [ref for ref in lab.place.world(NAME).objects if ref.kind.name == "Report"], (
        "a wait does not read them again and again"
    )
    with pytest.raises(GateFailed, match=r"regressed: .* % worse, 50 % is allowed"):
        delivered(lab.spec("--itl", "40", gates=repeated()), home)
    assert lab.record.serving == first["release"]
    assert set(config_maps(lab)) == {one.report for one in lab.record.ended}


def test_the_log_of_an_engine_that_failed_is_kept(lab: Lab, tmp_path: Path) -> None:
    delivered(lab.spec(gates=SMOKE_ONLY), tmp_path / "home")
    with pytest.raises(Permanent):
        delivered(lab.spec("--fail-start", gates=SMOKE_ONLY), tmp_path / "home")
    crashed = lab.record.ended[-1]
    files = evidence.files(lab.place, NAME, crashed)
    assert set(files) == {"engine.log"}
    assert b"No available memory for the cache blocks" in files["engine.log"]
    with pytest.raises(GateFailed, match="--reports DIR"):
        delivered(lab.spec("--wrong-answer", gates=SMOKE_ONLY), tmp_path / "home")
    files = evidence.files(lab.place, NAME, lab.record.ended[-1])
    assert {"report.json", "engine.log"} <= set(files)
    assert b"Starting timing server" in files["engine.log"]


def test_evidence_goes_with_its_attempt(lab: Lab, tmp_path: Path) -> None:
    for _ in range(3):
        delivered(lab.spec(gates=SMOKE_ONLY, rollout={"history": 2, "keep": 1}), tmp_path / "home")
    assert set(config_maps(lab)) == {one.report for one in lab.record.ended}
    assert len(config_maps(lab)) == 2


def test_what_a_config_map_cannot_hold_is_left_out_by_its_worth(lab: Lab) -> None:
    sizes = {"throughput.png": 200, "report.html": 500, "report.json": 300, "engine.log": 60}
    given = {name: os.urandom(size * 1024) for name, size in sizes.items()}
    evidence.keep(lab.place, NAME, "r1", 1, given)
    tried = Ended(
        release="r1", attempt=1, outcome=Outcome.REFUSED, request="", exit_code=0, at=0, report=evidence.where(NAME, "r1", 1)
    )  # fmt: skip
    assert evidence.files(lab.place, NAME, tried) == {
        name: given[name] for name in ("report.json", "report.html", "engine.log")
    }
    assert evidence.forget(lab.place, NAME, tried).report is None
    assert evidence.files(lab.place, NAME, tried) == {}
