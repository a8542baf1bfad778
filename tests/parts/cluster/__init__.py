"""Real Kubernetes for tests: a control plane for any user (here), and a node for root
(``node``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.parts.cluster.control_plane import Cluster
from tests.parts.cluster.provisioner import Provisioner

__all__ = ["Cluster", "running_control_plane"]


@contextmanager
def running_control_plane(folder: Path) -> Iterator[Cluster]:
    """A fresh cluster without nodes, for the length of the block; its logs stay in
    ``folder/log``, its volumes in ``folder/volumes``.
    """
    cluster = Cluster(folder, extra={"kube-controller-manager": ("--node-monitor-grace-period=1h",)})
    try:
        cluster.start()
        with Provisioner(cluster):
            yield cluster
    finally:
        cluster.programs.stop_all(grace=0)
        cluster.client.close()
