"""One control plane for all tests of a worker; each test takes a namespace of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.parts.cluster import Cluster, running_control_plane


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_control_plane(tmp_path_factory.mktemp("cluster")) as made:
        yield made
        if request.session.testsfailed:
            made.programs.keep_logs()


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    with cluster.namespace() as name:
        yield name
