"""The node of the node tier."""

from __future__ import annotations

from tests.cluster.node.conftest import node

__all__ = ["node"]
