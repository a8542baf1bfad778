"""The sorts of objects as values: where a cluster's API keeps one, and how a place treats
it. A target declares its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Demand = Mapping[str, tuple[int, Mapping[str, int]]]


@dataclass(frozen=True, order=True)
class Kind:
    """``name`` as a manifest says it; ``group``, ``version`` and ``plural`` as an API has
    them (empty where none has it).

    ``stored``: ours alone, written whole by compare and swap. ``foreground``: its end
    takes its pods with it, and it is there until they have gone. ``constant``: once made
    it never changes. ``steady``: it changes only when we change it. ``optional``: its API
    may be missing, or closed to us. ``eventful``: its controller tells of failures by
    events. ``bare``: its controller hands labels down to its pods, so that a label of
    ours on somebody's would restart them. ``demand``: of an object's manifest, by the
    name of each release in it: its replicas, and the devices that one of them asks for.
    Only kinds whose pods serve have it. ``detail``: one of many, which people need not
    be told.
    """

    name: str
    group: str = ""
    version: str = ""
    plural: str = ""
    stored: bool = False
    foreground: bool = False
    constant: bool = False
    steady: bool = False
    optional: bool = False
    eventful: bool = False
    bare: bool = False
    detail: bool = False
    demand: Callable[[Mapping[str, Any]], Demand] | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return self.name

    @property
    def api(self) -> str:
        """``apiVersion``, such as ``apps/v1``."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str, name: str = "") -> str:
        """Where the API keeps objects of this kind, or the one called ``name``."""
        root = f"/{'apis' if self.group else 'api'}/{self.api}/namespaces/{namespace}/{self.plural}"
        return f"{root}/{name}" if name else root


RECORD = Kind("Record", stored=True)
RELEASE = Kind("Release", stored=True)
REPORT = Kind("Report", stored=True)
LEASE = Kind("Lease", "coordination.k8s.io", "v1", "leases", stored=True)
