"""One control plane for all tests of a worker; each test takes a namespace of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.control.lab import Lab, delivering_lab, gpu_node
from tests.parts.cluster import Cluster, running_control_plane
from tests.parts.cluster.played import PlayedNode
from tests.parts.cluster.played_pod import loopback
from tests.parts.gateway import StandIn, running_gateway
from tests.parts.kserve import KServe, running_kserve
from tests.parts.ports import free_port
from tests.parts.t9k import StandIn as T9k
from tests.parts.t9k import running_t9k


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_control_plane(tmp_path_factory.mktemp("cluster")) as made:
        yield made
        if request.session.testsfailed:
            made.programs.keep_logs()


@pytest.fixture(scope="module")
def node(cluster: Cluster) -> Iterator[PlayedNode]:
    """With two GPUs. One at a time: the scheduler knows no tests, and would give its pods
    to another module's node.
    """
    with gpu_node(cluster) as made:
        yield made


@pytest.fixture(scope="module")
def gateway(cluster: Cluster) -> Iterator[StandIn]:
    """The stand-in of a gateway controller, before played pods."""
    with running_gateway(cluster, "127.0.0.1", free_port(), loopback) as made:
        yield made


@pytest.fixture(scope="module")
def t9k(cluster: Cluster, node: PlayedNode) -> Iterator[T9k]:
    with running_t9k(cluster) as made:
        yield made


@pytest.fixture(scope="session")
def kserve(cluster: Cluster) -> Iterator[KServe]:
    with running_kserve(cluster) as made:
        yield made


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    with cluster.namespace() as name:
        yield name


@pytest.fixture(params=["deployment", "t9k", "kserve"])
def lab(
    request: pytest.FixtureRequest, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: PlayedNode
) -> Iterator[Lab]:
    """On each target; a module that is about one has a ``lab`` of its own."""
    if request.param != "deployment":
        request.getfixturevalue(request.param)
    with delivering_lab(cluster, tmp_path, monkeypatch, node, kind=request.param) as made:
        yield made
