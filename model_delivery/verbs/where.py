"""Which delivery a person means: a spec's file, a name on this host, or one in a
cluster.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model_delivery.places import Place
from model_delivery.places.opening import Location
from model_delivery.spec import load_spec


@dataclass(frozen=True)
class Where:
    """A delivery: its name, and where it lives."""

    name: str
    location: Location

    @property
    def place(self) -> Place:
        return self.location.open()


def location(context: str | None = None, namespace: str | None = None) -> Location:
    """The cluster that ``context`` or ``namespace`` names, else this host."""
    if context is None and namespace is None:
        return Location()
    return Location(context=context, namespace=namespace or "default")


def find(named: str, context: str | None = None, namespace: str | None = None) -> Where:
    """``named`` is a spec's file, or a name on this host, or with ``context`` or
    ``namespace`` one in a cluster.
    """
    if named.endswith((".yaml", ".yml")):
        spec = load_spec(Path(named))
        return Where(spec.name, Location.of(spec.target.key()))
    return Where(named, location(context, namespace))
