"""What ``deliver`` takes in a namespace of many deliveries, for one with a long history:
seconds, memory and requests to the API server of an unchanged ``plan``, ``status``,
``list`` and ``history``; prints a table, and fails where ``plan`` misses its goal.

    PYTHONPATH=. .venv/bin/python benchmarks/crowd/run.py [--deliveries 50]
        [--history 200] [--times 5]

A real control plane with a played node. One delivery is real, with a release promoted and
one refused; the others are copies of its objects under other names (their Deployments ask
for no pods), and its history is its two real endings over and over, under other ids.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from contextlib import suppress
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest

from model_delivery.base import GateFailed
from model_delivery.flows.deliver import deliver
from tests.cluster.control.lab import Lab, delivering_lab, gpu_node
from tests.parts.cluster import running_control_plane

NAME, KEPT = "crowd", 20
DELIVER = str(Path(sys.executable).with_name("deliver"))
SECONDS, MEGABYTES = 5.0, 300.0
COPIED = (
    "api/v1/namespaces/{}/configmaps",
    "api/v1/namespaces/{}/services",
    "apis/apps/v1/namespaces/{}/deployments",
    "apis/coordination.k8s.io/v1/namespaces/{}/leases",
)
OF_THE_SERVER = ("managedFields", "resourceVersion", "generation", "creationTimestamp", "uid")
WEIGHED = """
import json, os, subprocess, sys, time
began = time.monotonic()
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE)
said = child.stdout.read().decode()
_, state, used = os.wait4(child.pid, 0)
spent = {"seconds": time.monotonic() - began, "cpu": used.ru_utime + used.ru_stime, "mb": used.ru_maxrss / 1000}
print(json.dumps(spent | {"state": state, "said": said}))
"""  # in a small process of its own: a child's peak begins with its parent's
COUNTED = """
import atexit, sys
from model_delivery.cli.entry import main
from model_delivery.places.cluster.client import Client
sent, send = [], Client._send
Client._send = lambda *args, **more: (sent.append(1), send(*args, **more))[1]
atexit.register(lambda: print(len(sent), file=sys.stderr))
main()
"""


def objects(lab: Lab) -> list[dict[str, Any]]:
    """Those of the real delivery, as they can be made again."""
    found: list[dict[str, Any]] = []
    for path in COPIED:
        answer = lab.cluster.client.get(
            path.format(lab.namespace), params={"labelSelector": f"model-delivery/delivery={NAME}"}
        ).raise_for_status()
        listed = answer.json()
        for item in listed["items"]:
            head = {"apiVersion": listed["apiVersion"], "kind": listed["kind"].removesuffix("List")}
            found.append(head | {key: value for key, value in item.items() if key != "status"})
            for key in OF_THE_SERVER:
                item["metadata"].pop(key, None)
            for key in ("clusterIP", "clusterIPs"):
                item.get("spec", {}).pop(key, None)
    return found


def copies(lab: Lab, count: int) -> None:
    made = objects(lab)
    for number in range(count):
        text = re.sub(rf"\b{NAME}\b", f"{NAME}-{number:02}", json.dumps(made))
        renamed = json.loads(text)
        for item in renamed:
            if item["kind"] == "Deployment":
                item["spec"]["replicas"] = 0
        lab.cluster.apply(*renamed)


def lengthen(lab: Lab, length: int) -> None:
    """The history; the last attempts have their evidence, as after real ones."""
    path = f"/api/v1/namespaces/{lab.namespace}/configmaps/{NAME}-record"
    stored = lab.cluster.client.get(path).raise_for_status().json()
    record = json.loads(stored["data"]["content"])
    real, reports = record["ended"], [one for one in objects(lab) if "-report-" in one["metadata"]["name"]]
    older = []
    for number, ended in enumerate(islice(cycle(real), length - len(real))):
        text, old, new = json.dumps(ended), ended["release"], f"{number:010x}"
        older.append(json.loads(text.replace(old, new)) | {"at": ended["at"] - 3600 * (length - number)})
        if number < length - KEPT:
            older[-1]["report"] = None
            continue
        ours = [one for one in reports if f"-report-{old}-" in one["metadata"]["name"]]
        if ours:
            lab.cluster.apply(*json.loads(json.dumps(ours).replace(old, new)))
    record["ended"] = [*older, *real]
    stored["data"]["content"] = json.dumps(record, sort_keys=True)
    lab.cluster.client.put(path, json=stored).raise_for_status()
    print(f"the record: {len(stored['data']['content'])} bytes, {len(record['ended'])} endings", flush=True)


def row(words: list[str], times: int) -> tuple[float, float, str]:
    """Median seconds, the most MB, and what it printed the last time; one line of the
    table.
    """
    seen = []
    for _ in range(times):
        weighed = [sys.executable, "-c", WEIGHED, DELIVER, *words]
        seen.append(json.loads(subprocess.run(weighed, stdout=subprocess.PIPE, check=True).stdout))
        if seen[-1]["state"]:
            raise SystemExit(f"deliver {' '.join(words)}: {seen[-1]}")
    counted = subprocess.run([sys.executable, "-c", COUNTED, *words], capture_output=True, text=True, check=True)
    spent, cpu, most = ([one[key] for one in seen] for key in ("seconds", "cpu", "mb"))
    middle, asked = statistics.median(spent), counted.stderr.split()[-1]
    told = f"{middle:.1f} | {max(spent):.1f} | {statistics.median(cpu):.1f} | {max(most):.0f} | {asked}"
    print(f"| `deliver {words[0]}` | {told} |", flush=True)
    return middle, max(most), seen[-1]["said"]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--deliveries", type=int, default=50)
    arguments.add_argument("--history", type=int, default=200)
    arguments.add_argument("--times", type=int, default=5)
    asked = arguments.parse_args()
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores; {asked.deliveries} deliveries", flush=True)
    with (
        tempfile.TemporaryDirectory() as made,
        pytest.MonkeyPatch.context() as patch,
        running_control_plane(Path(made)) as cluster,
        gpu_node(cluster) as node,
        delivering_lab(cluster, Path(made), patch, node) as lab,
    ):
        rollout = {"history": asked.history}
        spec, slow = lab.spec(name=NAME, rollout=rollout), {"error_rate_max": 0, "ttft_p95_max": "1ms"}
        deliver.fn(spec)
        with suppress(GateFailed):
            deliver.fn(lab.spec("--ttft", "50", name=NAME, rollout=rollout, slo=slow))
        copies(lab, asked.deliveries - 1)
        lengthen(lab, asked.history)
        file, where = Path(made) / "spec.json", ["-n", lab.namespace]
        file.write_text(json.dumps(spec.model_dump(mode="json")), encoding="utf-8")
        heads = "seconds, median | most | of which CPU | peak memory, MB | API requests"
        print(f"\n| | {heads} |\n|---|--:|--:|--:|--:|--:|", flush=True)
        seconds, megabytes, said = row(["plan", str(file), "--json"], asked.times)
        unchanged = json.loads(said)["result"] == "unchanged"
        row(["status", NAME, *where, "--json"], asked.times)
        listed = json.loads(row(["list", *where, "--json"], asked.times)[2])
        history = json.loads(row(["history", NAME, *where, "--json"], asked.times)[2])
    whole = (len(listed), len(history)) == (asked.deliveries, asked.history)
    print(f"\nplan: {'unchanged' if unchanged else said}; {len(listed)} listed, a history of {len(history)}")
    sys.exit(not (unchanged and whole and seconds <= SECONDS and megabytes <= MEGABYTES))


if __name__ == "__main__":
    main()
