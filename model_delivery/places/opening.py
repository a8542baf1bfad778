"""The place that a target lives in."""

from __future__ import annotations

from model_delivery.base.home import default_home
from model_delivery.places import Place
from model_delivery.places.host.place import Host
from model_delivery.targets import TargetKey


def open_place(key: TargetKey, *, take_over: bool = False) -> Place:
    """This host, or a namespace of a cluster. Refused when no cluster is known."""
    if key.place == "host":
        return Host(default_home())
    from model_delivery.places.cluster.place import Cluster

    return Cluster(key.context, key.namespace or "default", take_over=take_over)
