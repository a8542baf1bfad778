"""How soon a run notices that a step has ended in a cluster, and what its waiting costs
the API server: this tree beside another one (``--old FOLDER``), in turns.

Run from the project's root:
``PYTHONPATH=. .venv/bin/python benchmarks/waiting/run.py --old ../old``.
Real control plane, a played node (tests/parts/cluster); the end is when a watch of our
own is told that the Job is complete, the notice when the run says that its step ended.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[2]
SMOKE_ONLY = {"smoke": {"max_tokens": 16}, "throughput": None}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--old", type=Path, help="another checkout of this project, to compare with")
    arguments.add_argument("--deliveries", type=int, default=25, help="each has two step ends")
    arguments.add_argument("--slow", type=int, default=3, help="deliveries whose smoke test takes more than a minute")
    arguments.add_argument("--rounds", type=int, default=1)
    arguments.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked = arguments.parse_args()
    if asked.child:
        print(json.dumps(measured(asked.deliveries, asked.slow)))
        return
    sides = {"this": HERE} | ({"old": asked.old.resolve()} if asked.old else {})
    print(
        f"{'side':6} {'ends':>5} {'p50 s':>7} {'p90 s':>7} {'p99 s':>7} {'max s':>7} {'requests/min, most':>19} {'a delivery':>11}"
    )
    for _ in range(asked.rounds):
        for side, tree in sides.items():
            words = ["--child", "--deliveries", str(asked.deliveries), "--slow", str(asked.slow)]
            command = [sys.executable, __file__, *words]
            done = subprocess.run(
                command, cwd=tree, env=os.environ | {"PYTHONPATH": str(tree)}, stdout=subprocess.PIPE, check=True
            )
            told = json.loads(done.stdout.splitlines()[-1])
            late = sorted(told["late"])
            at = [late[min(len(late) - 1, int(share * len(late)))] for share in (0.5, 0.9, 0.99)]
            print(
                f"{side:6} {len(late):5} {at[0]:7.2f} {at[1]:7.2f} {at[2]:7.2f} {late[-1]:7.2f} {told['busiest']:19} {told['each']:11.0f}"
            )


def measured(deliveries: int, slow: int) -> dict[str, Any]:
    """``late``: seconds from each end to its notice. ``busiest``: the most requests in a
    minute of nothing but waiting. ``each``: requests of a quick delivery.
    """
    import pytest

    from model_delivery.flows.deliver import deliver
    from model_delivery.places.cluster import client
    from model_delivery.run import wait
    from tests.cluster.control.lab import delivering_lab, gpu_node
    from tests.parts.cluster import running_control_plane

    ended, noticed, began, sent = deque[float](), list[float](), list[float](), list[float]()
    told, send = wait.report, client.Client._send  # noqa: SLF001 - what is counted

    def report(progress: Any) -> None:
        told(progress)
        if progress.step.endswith(" step") and progress.note.startswith(("ended", "started")):
            (noticed if progress.note.startswith("ended") else began).append(time.monotonic())

    def counted(self: Any, *args: Any, **more: Any) -> Any:
        sent.append(time.monotonic())
        return send(self, *args, **more)

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(wait, "report", report)
        patch.setattr(client.Client, "_send", counted)
        with (
            running_control_plane(Path(folder)) as cluster,
            gpu_node(cluster) as node,
            delivering_lab(cluster, Path(folder), patch, node) as lab,
        ):
            threading.Thread(target=pod_ends, args=(cluster, lab.namespace, ended), daemon=True).start()
            for _ in range(deliveries):
                deliver.fn(lab.spec(gates=SMOKE_ONLY))
            each, quick = len(sent) / deliveries, len(noticed)
            for _ in range(slow):
                deliver.fn(lab.spec("--ttft", "20000", gates=SMOKE_ONLY))
    late = [after - before for before, after in zip(sorted(ended), noticed[:quick], strict=False)]
    waits = list(zip(began, noticed, strict=True))[quick:]
    return {"late": late, "busiest": max((busiest(sent, *wait) for wait in waits), default=0), "each": each}


def busiest(sent: list[float], began: float, ended: float) -> int:
    """The most requests in a minute between the two; 0 where it was shorter."""
    within = [at for at in sent if began <= at <= ended]
    return max((sum(at <= other < at + 60 for other in within) for at in within if at + 60 <= ended), default=0)


def pod_ends(cluster: Any, namespace: str, ended: deque[float]) -> None:
    """When each pod of a step is first told to have ended, until the API server goes."""
    import httpx

    seen = set[str]()
    path = f"/api/v1/namespaces/{namespace}/pods"
    with (
        suppress(httpx.TransportError),
        cluster.client.stream("GET", path, params={"watch": "1"}, timeout=None) as answer,
    ):
        for line in answer.iter_lines():
            pod = json.loads(line)["object"]
            job, uid = pod["metadata"].get("labels", {}).get("batch.kubernetes.io/job-name", ""), pod["metadata"]["uid"]
            over = pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
            awaited = job and not job.endswith("-image")  # a step's second Job is not waited for
            if over and awaited and uid not in seen:
                seen.add(uid)
                ended.append(time.monotonic())


if __name__ == "__main__":
    main()
