"""The two places: a state folder, and a namespace of a real control plane; each test has
one of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from model_delivery.places import Place
from model_delivery.places.cluster.place import Cluster as ClusterPlace
from model_delivery.places.host.engines import load_engine
from model_delivery.places.host.place import Host
from model_delivery.targets.kubernetes.kinds import CONFIG_MAP, SERVICE
from model_delivery.targets.process import ENGINE, ROUTER
from model_delivery.values import Ref, Resource
from tests.parts.cluster import Cluster, running_control_plane
from tests.parts.ports import free_port
from tests.parts.timing_engine import engine_folder
from tests.parts.tiny_model import tiny_model

NAME = "m"


@dataclass(frozen=True)
class Given:
    """``open``: the place, as another run would open it. ``thing``: something that
    serves; ``way``: something of the route; both in versions.
    """

    open: Callable[[], Place]
    thing: Callable[[str, int], Resource]
    way: Callable[[int], Resource]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_control_plane(tmp_path_factory.mktemp("cluster")) as made:
        yield made


@pytest.fixture(params=["host", "cluster"])
def given(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Given]:
    if request.param == "host":
        yield from on_host(tmp_path)
        return
    cluster: Cluster = request.getfixturevalue("cluster")
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    with cluster.namespace() as namespace:
        yield Given(lambda: ClusterPlace(None, namespace), config, service)


def on_host(folder: Path) -> Iterator[Given]:
    host = Host(folder / "home")
    engine = load_engine(str(engine_folder(folder / "engine")))
    model = tiny_model(folder / "store" / "model")
    ports = {1: free_port(), 2: free_port()}

    def thing(release: str, version: int) -> Resource:
        payload = {
            "engine": engine.model_dump(mode="json"), "model": model.name, "store": str(model.parent), "names": [NAME], "args": ["--label", str(version)],
            "chat_template": None, "env": {}, "secret_env": {}, "api_key": None, "port": "auto", "cpus": 1, "gpus": 0, "memory": 1,
        }  # fmt: skip
        return Resource(Ref(ENGINE, release), "release", NAME, payload, release)

    def way(version: int) -> Resource:
        return Resource(Ref(ROUTER, "router"), "route", NAME, {"host": "127.0.0.1", "port": ports[version]})

    yield Given(lambda: Host(folder / "home"), thing, way)
    for ref, seen in host.world(NAME).objects.items():
        if seen.status.get("alive") and ref.kind.name != "Lease":
            host.delete(NAME, ref, grace=0)


def config(release: str, version: int) -> Resource:
    return Resource(Ref(CONFIG_MAP, f"{NAME}-{release}"), "release", NAME, {"data": {"version": str(version)}}, release)


def service(version: int) -> Resource:
    spec = {
        "selector": {"model-delivery/object": f"r{version}"},
        "ports": [{"name": "http", "port": 8000, "targetPort": "http", "protocol": "TCP"}],
    }
    return Resource(Ref(SERVICE, NAME), "route", NAME, {"spec": spec})


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path / "home")
    yield made
    for ref, seen in made.world(NAME).objects.items():
        if seen.status.get("alive") and ref.kind.name != "Lease":
            made.delete(NAME, ref, grace=0)


@pytest.fixture
def payload(tmp_path: Path) -> dict[str, Any]:
    engine = load_engine(str(engine_folder(tmp_path / "engine")))
    model = tiny_model(tmp_path / "store" / "model")
    return {
        "engine": engine.model_dump(mode="json"), "model": model.name, "store": str(model.parent), "names": [NAME], "args": [], "chat_template": None,
        "env": {}, "secret_env": {}, "api_key": None, "port": "auto", "cpus": 1, "gpus": 0, "memory": 1,
    }  # fmt: skip


def engine(payload: dict[str, Any], release: str = "r1", *args: str) -> Resource:
    return Resource(Ref(ENGINE, release), "release", NAME, {**payload, "args": list(args)}, release)


def ready(host: Host, release: str) -> dict[str, Any]:
    while True:
        status = host.world(NAME).objects[Ref(ENGINE, release)].status
        if status["healthy"] or not status["alive"]:
            return dict(status)
        host.hint(NAME, 0.2)
