"""The node of the node tier."""

from tests.cluster.node.conftest import node

__all__ = ["node"]
