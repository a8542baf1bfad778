"""The place that a target lives in."""

from __future__ import annotations

from delivery.home import default_home
from delivery.places import Place
from delivery.places.host import Host
from delivery.record import TargetKey


def open_place(key: TargetKey, *, take_over: bool = False) -> Place:
    """This host, or a namespace of a cluster. Refused when no cluster is known."""
    if key.kind == "process":
        return Host(default_home())
    from delivery.places.cluster import Cluster

    return Cluster(key.context, key.namespace or "default", take_over=take_over)
