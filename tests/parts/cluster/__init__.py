"""Real Kubernetes for tests: a control plane for any user, and a node for root."""

from tests.parts.cluster.control_plane import Cluster, running_control_plane

__all__ = ["Cluster", "running_control_plane"]
