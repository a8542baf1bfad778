"""A delivery to the control-plane tier: a hub, a played node with GPUs, the stand-in
engine as the serving image, our own steps as children.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from model_delivery.base import Permanent
from model_delivery.flows.deliver import deliver
from model_delivery.places.cluster.place import Cluster as Place
from model_delivery.run.record import Record, load
from model_delivery.spec import DeliverySpec, parse_spec
from model_delivery.targets.t9k import ML_SERVICE
from model_delivery.values import RECORD_REF, Ref, World
from tests.parts.cluster import Cluster
from tests.parts.cluster.played import PlayedNode, played_node
from tests.parts.hubs import Hub
from tests.parts.hubs.huggingface import running_hub
from tests.parts.kinds import BY_NAME
from tests.parts.timing_engine import build
from tests.parts.tiny_model import tiny_model

NAME = "small"
ALL_GPUS = {"resources": {"limits": {"nvidia.com/gpu": 2}}}
ENGINE = f"registry.example/engine@sha256:{'1' * 64}"
RUNNER = f"registry.example/model-delivery@sha256:{'2' * 64}"
CLASS = {
    "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "late"}, "provisioner": "kubernetes.io/host-path",
    "volumeBindingMode": "WaitForFirstConsumer",
}  # fmt: skip


@dataclass
class Lab:
    """Every release differs by its label."""

    cluster: Cluster
    node: PlayedNode
    namespace: str
    hub: Hub
    labels: int = 0
    spec_more: dict[str, Any] = field(default_factory=dict)
    kind: str = "deployment"

    def spec(self, *args: str, slo: dict[str, Any] | None = None, **more: Any) -> DeliverySpec:
        self.labels += 1
        throughput = {
            "profile": "smoke",
            "users": 2,
            "warmup": "0s",
            "duration": "300ms",
            "slo": slo or {"error_rate_max": 0},
        }
        rollout = {"strategy": "blue-green", "watch": "0s", "standby": "0s", **more.pop("rollout", {})}
        serving = {
            "args": ["--label", f"r{self.labels}", "--ttft", "2", "--itl", "1", *args],
            **more.pop("serving", {}),
        }
        return parse_spec(
            {
                "apiVersion": "model-delivery/v1",
                "name": NAME,
                "model": {"source": "huggingface", "repo": "org/model"},
                "storage": {"claim": f"{NAME}-models", "size": "1Gi", "storage_class": "late"},
                "serving": {"startup_timeout": "60s", **serving},
                "target": {"kind": self.kind, "namespace": self.namespace, "image": ENGINE, **more.pop("target", {})},
                "runner": {"image": RUNNER},
                "gates": {"smoke": {"max_tokens": 16}, "throughput": throughput},
                "rollout": rollout,
                **more,
            }
        )

    def deliver(self, *words: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        """``deliver`` with ``words``, as a user types it; its exit code is ``code``."""
        command = [str(Path(sys.executable).with_name("deliver")), *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def running(self, world: World) -> list[str]:
        """The releases that the target has been asked to run."""
        if self.kind == "t9k":
            service = world.objects.get(Ref(ML_SERVICE, NAME))
            return [one["name"] for one in service.resource.spec["spec"]["releases"]] if service else []
        main = "InferenceService" if self.kind == "kserve" else "Deployment"
        return [ref.name.removeprefix(f"{NAME}-") for ref in world.objects if ref.kind.name == main]

    def routed_to(self, world: World) -> str | None:
        """The release that has all of the traffic; None: there is no route."""
        route = world.objects.get(Ref(BY_NAME["MLService" if self.kind == "t9k" else "Service"], NAME))
        if route is None:
            return None
        spec = route.resource.spec["spec"]
        if self.kind == "t9k":
            return str(spec["default"]) if "canary" not in spec else f"{spec['default']} and {spec['canary']}"
        return str(spec["selector"]["model-delivery/object"]).removeprefix(f"{NAME}-")

    @property
    def place(self) -> Place:
        return Place(None, self.namespace)

    @property
    def record(self) -> Record:
        seen = self.place.get(NAME, RECORD_REF)
        assert seen is not None
        return load(seen.resource.spec)


def written(spec: DeliverySpec, folder: Path) -> Path:
    """The spec as a file, for ``deliver``."""
    file = folder / "spec.yaml"
    file.write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    return file


@contextmanager
def delivering_lab(
    cluster: Cluster,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    node: PlayedNode,
    *,
    kind: str = "deployment",
    **labels: str,
) -> Iterator[Lab]:
    model = tiny_model(folder / "model")
    with running_hub(model) as hub, cluster.namespace(**labels) as namespace:
        for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
        monkeypatch.setenv("MODEL_DELIVERY_HOME", str(folder / "home"))
        yield Lab(cluster, node, namespace, hub, kind=kind)


@contextmanager
def gpu_node(cluster: Cluster) -> Iterator[PlayedNode]:
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    cluster.apply(CLASS)
    with played_node(cluster, "gpu0", allocatable={"nvidia.com/gpu": "2"}) as node:
        node.entrypoints |= {ENGINE: (build(), "--host", "0.0.0.0"), RUNNER: (sys.executable,)}
        yield node


def refused_then_recreated(make: Callable[..., DeliverySpec], alone: Callable[[str], None]) -> str:
    """Of two releases that need all GPUs each, the second is refused, and then takes the
    first one's place; returns its id.

    ``make`` makes a spec, ``alone`` asserts that a release serves alone.
    """
    first = deliver.fn(make(serving=ALL_GPUS))["release"]
    with pytest.raises(
        Permanent, match=r"(?s)cannot hold both releases.*2 × nvidia.com/gpu wanted, 0 of 2 free"
    ) as full:
        deliver.fn(make(serving=ALL_GPUS))
    assert full.value.exit_code == 3
    alone(first)
    second = deliver.fn(make(serving=ALL_GPUS, rollout={"when_full": "recreate"}))
    assert second["result"] == "promoted"
    release: str = second["release"]
    alone(release)
    return release
