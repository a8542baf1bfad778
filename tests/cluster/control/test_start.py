"""The phases of a start on a real API server, as scheduler, kubelet and engine tell
them.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import UTC, datetime
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from model_delivery.base import sink
from model_delivery.flows.deliver import deliver
from model_delivery.places.cluster import pace
from model_delivery.values import Phase
from model_delivery.verbs.status import status
from tests.cluster.control.lab import ENGINE, NAME, Lab
from tests.parts.timing_engine import build
from tests.unit.test_start_kept import ENGINE as PRINTS
from tests.unit.test_start_kept import LINES

SECONDS = 60


def test_a_start_in_a_cluster_is_told_by_its_phases_and_kept(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "SCHEDULE", (0.3,))
    script = tmp_path / "engine.py"
    script.write_text(PRINTS)
    (tmp_path / "timing-server").symlink_to(build())
    os.mkfifo(tmp_path / "lines")
    own, lab.node.entrypoints[ENGINE] = lab.node.entrypoints[ENGINE], (sys.executable, script, "--host", "0.0.0.0")
    told = Queue[str]()
    try:
        with ThreadPoolExecutor(1) as pool, sink(lambda news: told.put(news.line())):
            run = pool.submit(copy_context().run, deliver.fn, lab.spec(gates={"throughput": None}))
            hears(told, "the engine is starting")
            pulled(lab)
            with (tmp_path / "lines").open("w", buffering=1) as lines:
                for line, words in LINES:
                    lines.write(f"{line}\n")
                    hears(told, f"the engine is starting: {words}")
                assert [*status(lab.place, NAME).start][-2:] == [Phase.COMPILED, Phase.WARM]
            assert run.result(SECONDS)["result"] == "promoted"
    finally:
        lab.node.entrypoints[ENGINE] = own
    starts = lab.record.ended[-1].starts
    assert [*starts] == [*Phase]
    assert [*starts.values()] == sorted(starts.values())


def hears(told: Queue[str], words: str) -> None:
    while words not in told.get(timeout=SECONDS):
        pass


def pulled(lab: Lab) -> None:
    """As its kubelet tells it."""
    path = f"/api/v1/namespaces/{lab.namespace}"
    pods: list[dict[str, Any]] = lab.cluster.client.get(f"{path}/pods").json()["items"]
    [pod] = [pod for pod in pods if pod["metadata"]["labels"].get("model-delivery/role") == "release"]
    meta, now = pod["metadata"], datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    about = {"kind": "Pod", "name": meta["name"], "namespace": lab.namespace, "uid": meta["uid"], "apiVersion": "v1"}
    event = {
        "metadata": {"name": f"{meta['name']}.pulled"},
        "involvedObject": {**about, "fieldPath": f"spec.containers{{{pod['spec']['containers'][0]['name']}}}"},
        "reason": "Pulled",
        "type": "Normal",
        "message": f'Successfully pulled image "{ENGINE}" in 1s',
        "firstTimestamp": now,
        "lastTimestamp": now,
    }
    assert lab.cluster.client.post(f"{path}/events", json=event).is_success
