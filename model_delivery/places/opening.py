"""Where a delivery lives, and the place there."""

from __future__ import annotations

from typing import Any, Self

from pydantic import model_validator

from model_delivery.base import Part
from model_delivery.base.home import usable_home
from model_delivery.places import Place
from model_delivery.places.host.place import Host
from model_delivery.targets import TargetKey


class Location(Part):
    """A namespace of a cluster (``context``: of the kubeconfig, None: its current one);
    without a namespace this host.
    """

    context: str | None = None
    namespace: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _older(cls, given: Any) -> Any:
        """An older version's parameter also says the target's kind."""
        return {key: value for key, value in given.items() if key != "kind"} if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _of_a_cluster(self) -> Self:
        if self.context is not None and self.namespace is None:
            raise ValueError("a context needs the namespace: without one this host is meant")
        return self

    @classmethod
    def of(cls, key: TargetKey) -> Self:
        return cls(context=key.context, namespace=key.namespace)

    def __str__(self) -> str:
        return "this host" if self.namespace is None else f"namespace {self.namespace}"

    def open(self, *, take_over: bool = False) -> Place:
        """Refused when no cluster is known. ``take_over``: values that another field
        manager holds are taken.
        """
        if self.namespace is None:
            return Host(usable_home())
        from model_delivery.places.cluster.place import Cluster

        return Cluster(self.context, self.namespace, take_over=take_over)


HERE = Location()
