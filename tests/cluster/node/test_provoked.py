"""What goes wrong on a real node, and what its user is told: each case leaves the release
that served before, alone and answering.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cluster.node.lab import NAME, PULL, Lab, running_lab
from tests.parts.cluster import images
from tests.parts.cluster.node import Node
from tests.parts.cluster.waiting import until
from tests.parts.tiny_model import tiny_model

pytestmark = pytest.mark.timeout(600)
FILLS_THE_DISK = "import time\nwith open('/tmp/big', 'wb') as big:\n    big.write(bytes(60 << 20))\ntime.sleep(600)"
FILLS_MEMORY = "held = []\nwhile True:\n    held.append(b'x' * (8 << 20))"
PROMISED = 10.0  # seconds from a terminal event's or status's own timestamp to the end of the wait


@pytest.fixture(scope="module")
def lab(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    pushed = {
        "runner": images.push_project(node.registry),
        "engine": images.push_timing_engine(node.registry),
        "disk": images.push_script(node.registry, "fills-disk", FILLS_THE_DISK),
        "memory": images.push_script(node.registry, "fills-memory", FILLS_MEMORY),
    }
    folder = tmp_path_factory.mktemp("provoked")
    with running_lab(node, folder, tiny_model(folder / "model"), pushed) as made:
        made.deliver("up", made.spec(pushed["engine"]))
        yield made


def unharmed(lab: Lab, serving: str) -> None:
    record = lab.record
    assert (record.candidate, record.serving) == (None, serving)
    assert [one["metadata"]["name"] for one in lab.there("deployments")] == [f"{NAME}-{serving}"]
    assert httpx.get(f"http://{NAME}.{lab.namespace}.svc:8000/health", trust_env=False).is_success


def refused(lab: Lab, file: Path, code: int = 1) -> tuple[str, float]:
    """What ``deliver up`` said, and when it said that a wait had failed (seconds since
    the epoch); the old release is unharmed.
    """
    serving = lab.record.serving
    assert serving
    lines, ended = [], 0.0
    with lab.begin("up", file) as run:
        assert run.stdout
        for line in run.stdout:
            lines.append(line)
            ended = ended or (time.time() if "failed after" in line else 0.0)
    said = "".join(lines)
    assert run.returncode == code, said
    assert "Traceback" not in said
    unharmed(lab, serving)
    return said, ended


def test_an_image_that_is_not_there(lab: Lab) -> None:
    tagged, _ = refused(lab, lab.spec("registry.test/absent:1"), code=3)
    assert "there is no image registry.test/absent:1" in tagged
    absent = f"registry.test/absent@sha256:{'3' * 64}"
    said, ended = refused(lab, lab.spec(absent))
    assert f"there is no image {absent}" in said
    assert ended - event(lab, f"{absent}: not found") < PROMISED


def event(lab: Lab, text: str) -> float:
    """When the first event that says ``text`` happened (seconds since the epoch,
    whole).
    """
    told = [one for one in lab.there("events") if text in one.get("message", "")]
    return min(datetime.fromisoformat(one["firstTimestamp"] or one["eventTime"]).timestamp() for one in told)


def test_a_registry_that_denies(lab: Lab) -> None:
    image = images.push_new(lab.node.registry, "denied")
    with lab.node.registry.failing(401, path="/denied/", WWW_Authenticate='Basic realm="test"'):
        said, ended = refused(lab, lab.spec(image))
    assert f"the registry does not let the cluster pull {image}" in said
    assert "serving.pod.image_pull_secrets" in said
    assert ended - event(lab, "401") < PROMISED


def test_a_registry_that_is_busy_is_waited_for(lab: Lab) -> None:
    """The image is new to the node: the engine's, with another content."""
    image = images.push_timing_engine(lab.node.registry, new=True)
    with lab.node.registry.failing(429, path="/timing/", Retry_After="1") as fault:
        lines = []
        with lab.begin("up", lab.spec(image)) as run:
            assert run.stdout
            for line in run.stdout:
                lines.append(line)
                if "the registry is busy" in line:
                    fault.times = 0
    said = "".join(lines)
    assert run.returncode == 0, said
    assert "the registry is busy or away" in said
    assert f"{NAME}: promoted" in said


def test_what_no_node_could_ever_hold(lab: Lab) -> None:
    said, _ = refused(
        lab, lab.spec(lab.images["engine"], serving={"pod": PULL, "resources": {"limits": {"memory": "1Ti"}}})
    )
    assert "no node could ever hold the pod: memory: " in said


def test_a_device_that_no_node_has_is_waited_for_until_the_spec_s_timeout(lab: Lab) -> None:
    serving = {"pod": PULL, "resources": {"limits": {"nvidia.com/gpu": 1}}, "startup_timeout": "15s"}
    said, _ = refused(lab, lab.spec(lab.images["engine"], serving=serving))
    assert "is not ready after 15 s" in said
    assert "Insufficient nvidia.com/gpu" in said


def test_an_engine_that_needs_more_memory_than_its_limit(lab: Lab) -> None:
    serving = {"pod": PULL, "resources": {"limits": {"memory": "100Mi"}}}
    said, _ = refused(lab, lab.spec(lab.images["memory"], serving=serving))
    assert "it used more memory than its limit" in said
    assert "serving.resources.limits.memory" in said


def test_an_engine_that_is_evicted_for_its_own_limit(lab: Lab) -> None:
    serving = {"pod": PULL, "resources": {"limits": {"ephemeral-storage": "20Mi"}}}
    said, _ = refused(lab, lab.spec(lab.images["disk"], serving=serving))
    assert "was evicted" in said
    assert "ephemeral" in said


def test_a_pod_that_is_evicted_by_hand_is_replaced_and_the_delivery_goes_on(lab: Lab) -> None:
    file = lab.spec(lab.images["engine"], serving={"pod": PULL, "args": ["--label", "evicted", "--start-delay", "8"]})
    old = {one["metadata"]["name"] for one in lab.there("pods", "model-delivery/role=release")}
    with lab.begin("up", file) as run:

        def running() -> list[str]:
            pods = lab.there("pods", "model-delivery/role=release")
            return [
                p["metadata"]["name"]
                for p in pods
                if p["status"]["phase"] == "Running" and p["metadata"]["name"] not in old
            ]

        (name,) = until(running, 120, "the pod does not start")
        eviction = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": lab.namespace},
        }
        path = f"/api/v1/namespaces/{lab.namespace}/pods/{name}/eviction"
        lab.node.kubectl("create", "--raw", path, "-f", "-", input=json.dumps(eviction))
        said, _ = run.communicate()
    assert run.returncode == 0, said
    assert name not in {one["metadata"]["name"] for one in lab.there("pods")}


def test_a_pod_that_is_slow_but_well(lab: Lab) -> None:
    file = lab.spec(
        lab.images["engine"],
        serving={"pod": PULL, "args": ["--label", "slow", "--start-delay", "25"], "startup_timeout": "60s"},
    )
    said = lab.deliver("up", file)
    assert f"{NAME}: promoted" in said
    assert re.search(r"release \w+: the engine is starting|release \w+: .* of 60 s", said)


def test_a_quota_that_is_used_up(lab: Lab) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few", "namespace": lab.namespace}}
    lab.node.apply(quota | {"spec": {"hard": {"limits.nvidia.com/gpu": "0", "requests.nvidia.com/gpu": "0"}}})
    serving = {"pod": PULL, "resources": {"limits": {"nvidia.com/gpu": 1}}}
    said, ended = refused(lab, lab.spec(lab.images["engine"], serving=serving))
    lab.node.kubectl("delete", "resourcequota", "few", "-n", lab.namespace)
    assert "the namespace's quota is used up" in said
    assert ended - event(lab, "exceeded quota") < PROMISED


def test_an_admission_rule_that_says_no(lab: Lab) -> None:
    serving = {"pod": PULL | {"security_context": {"runAsUser": 0, "runAsNonRoot": False}}}
    said, ended = refused(lab, lab.spec(lab.images["engine"], serving=serving))
    assert "Pod Security level refuses" in said
    assert ended - event(lab, "violates PodSecurity") < PROMISED


def test_a_claim_that_cannot_be_bound(node: Node, tmp_path: Path, lab: Lab) -> None:
    node.apply(
        {
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "nobody"},
            "provisioner": "test/nobody", "volumeBindingMode": "Immediate",
        }
    )  # fmt: skip
    storage: dict[str, Any] = {"claim": "never", "size": "1Gi", "storage_class": "nobody"}
    said, _ = refused(
        lab, lab.spec(lab.images["engine"], storage=storage, serving={"pod": PULL, "startup_timeout": "20s"})
    )
    assert "is not ready after 20 s" in said
    assert "the claim never is not bound yet" in said
