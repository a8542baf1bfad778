"""One node for all tests; each takes a namespace of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.parts.cluster.node import Node, running_node


@pytest.fixture(scope="session")
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with running_node(tmp_path_factory.mktemp("node")) as made:
        yield made
        if request.session.testsfailed:
            made.programs.keep_logs()


@pytest.fixture
def namespace(node: Node) -> Iterator[str]:
    """It enforces the restricted Pod Security level, and has the pull secret ``pull``."""
    with node.namespace(**{"pod-security.kubernetes.io/enforce": "restricted"}) as name:
        node.apply(node.registry.pull_secret(name))
        yield name
