"""What an engine compiled, on a claim and on a node, by a real kubelet: its next pod
finds it, and one that cannot use it starts without.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from model_delivery.targets.kubernetes.caches import FOLDER, NODE
from tests.cluster.node.lab import NAME, PULL, Lab, running_lab
from tests.cluster.node.test_starts import Run, opens
from tests.parts.cluster import images
from tests.parts.cluster.node import Node
from tests.parts.cluster.waiting import until
from tests.parts.tiny_model import tiny_model
from tests.unit.test_warming import cached

pytestmark = pytest.mark.timeout(600)
COMPILES = """
import os, pathlib, sys
there = pathlib.Path("/tmp/cache/vllm")
found = sorted(path.name for path in there.glob("*"))
print("linked" if there.is_symlink() else "plain", *found, flush=True)
if "spoilt" in found:
    sys.exit("RuntimeError: what was compiled cannot be loaded")
there.mkdir(parents=True, exist_ok=True)
(there / os.environ["HOSTNAME"]).write_text("compiled")
"""
GATE = "example.com/cache-gate"
SHARED = {"claim": f"{NAME}-models", "access": "ReadWriteMany"}


@pytest.fixture(scope="module")
def pushed(node: Node) -> dict[str, str]:
    engine = images.push_told_engine(node.registry, "compiles", COMPILES)
    return {"runner": images.push_project(node.registry), "engine": engine}


def made(node: Node, folder: Path, pushed: dict[str, str], level: str) -> AbstractContextManager[Lab]:
    return running_lab(node, folder, tiny_model(folder / "model"), pushed, level=level)


@pytest.fixture
def lab(node: Node, tmp_path: Path, pushed: dict[str, str]) -> Iterator[Lab]:
    with made(node, tmp_path, pushed, "restricted") as lab:
        yield lab


@pytest.fixture
def privileged(node: Node, tmp_path: Path, pushed: dict[str, str]) -> Iterator[Lab]:
    """Where a pod may mount a folder of its node."""
    with made(node, tmp_path, pushed, "privileged") as lab:
        yield lab


def spec(lab: Lab, cache: str, **serving: Any) -> Path:
    return lab.spec(lab.images["engine"], serving={"pod": PULL, "cache": cache, **serving}, storage=SHARED)


def engines(lab: Lab) -> dict[str, str]:
    """By pod, what its engine found."""
    pods = [one["metadata"] for one in lab.there("pods", "model-delivery/role=release")]
    names = [meta["name"] for meta in pods if "deletionTimestamp" not in meta]
    return {name: lab.node.kubectl("logs", "-n", lab.namespace, name, "-c", "engine").split("\n")[0] for name in names}


def next_pods_engine(lab: Lab) -> str:
    """What the engine of the pod that comes after the one that is there found."""
    (old,) = engines(lab)
    lab.node.kubectl("delete", "pod", old, "-n", lab.namespace, "--wait")
    lab.node.kubectl(
        "wait",
        "--for=condition=Available",
        f"deployment/{NAME}-{lab.record.serving}",
        "-n",
        lab.namespace,
        "--timeout=120s",
    )
    ((new, found),) = engines(lab).items()
    assert new != old
    return found


def folder(lab: Lab) -> Path:
    """Of the release that serves, on the claim."""
    (found,) = lab.there("deployments", f"model-delivery/release={lab.record.serving}")
    pod = found["spec"]["template"]["spec"]
    mounts = [mount.get("subPath", "") for mount in pod["containers"][0]["volumeMounts"]]
    return lab.volume() / next(str(path) for path in mounts if path.startswith(FOLDER))


def test_a_claim_keeps_it_for_the_next_pod_and_for_two_at_once(lab: Lab) -> None:
    said = lab.deliver("up", spec(lab, "claim"))
    assert "engine.cache-unusable" not in said
    ((first, found),) = engines(lab).items()
    assert found == "linked"
    assert next_pods_engine(lab) == f"linked {first}"
    cache = folder(lab)
    assert cache.stat().st_mode & 0o777 == 0o700
    os.chown(cache, 12345, 12345)
    assert next_pods_engine(lab) == "plain", "what somebody else may have written is not run"
    said = lab.deliver("up", spec(lab, "claim", args=["--label", "two"], replicas={"min": 2, "max": 2}))
    assert "engine.cache-unusable" not in said
    both = engines(lab)
    assert {found.split()[0] for found in both.values()} == {"linked"}
    assert {path.name for path in (folder(lab) / "vllm").iterdir()} == both.keys()


def test_a_claim_that_cannot_be_written_there_stops_no_engine(lab: Lab) -> None:
    lab.deliver("up", spec(lab, "none"))
    parent = lab.volume() / FOLDER
    parent.mkdir(0o755)
    said = lab.deliver("up", spec(lab, "claim"))
    assert "the engine starts without its cache: it cannot be written, or is full [engine.cache-unusable]" in said
    assert f"{NAME}: promoted" in said
    assert [*engines(lab).values()] == ["plain"]


def test_a_start_that_fails_with_what_was_kept_is_tried_once_without(lab: Lab) -> None:
    lab.deliver("up", spec(lab, "claim"))
    (folder(lab) / "vllm" / "spoilt").write_text("")
    file = spec(lab, "claim", startup_timeout="4m")
    said = lab.deliver("up", file)
    assert "the engine is started once more, without its cache" in said
    assert "[engine.cache-dropped]" in said
    assert f"{NAME}: promoted" in said
    assert [*engines(lab).values()] == ["plain"]
    assert f"{NAME}: unchanged" in lab.deliver("up", file)


def test_a_node_keeps_it_where_its_administrator_lets_pods_write(privileged: Lab) -> None:
    lab, there = privileged, Path(NODE)
    there.chmod(0o755)
    said = lab.deliver("up", spec(lab, "node"))
    assert "[engine.cache-unusable]" in said
    ((_, found),) = engines(lab).items()
    assert found == "plain"
    shutil.rmtree(there / NAME)  # the kubelet's, which is root
    there.chmod(0o1777)
    assert next_pods_engine(lab) == "linked"
    ((second, _),) = engines(lab).items()
    assert next_pods_engine(lab) == f"linked {second}"


def test_weights_are_read_ahead_of_the_engine(lab: Lab) -> None:
    resources = {"limits": {GATE: 1, "memory": "256Mi"}}
    run = Run(lab, spec(lab, "none", readahead=True, resources=resources))
    run.hears(f"Insufficient {GATE}")
    weights = next(lab.volume().rglob("*.safetensors"))
    with weights.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert cached(weights) == 0
    opens(lab, GATE)
    assert f"{NAME}: promoted" in run.ends()
    until(lambda: cached(weights) >= weights.stat().st_size, 10, lambda: f"{cached(weights)} bytes")
    (pod,) = lab.there("pods", "model-delivery/role=release")
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0
