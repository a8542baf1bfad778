"""The one verb: make the place hold what is wanted, and nothing else of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model_delivery.base.findings import Finding, Permanent
from model_delivery.places import Place
from model_delivery.values.resources import ABSENT, Change, Mismatch, Observed, Ref, Resource, covers

RouteMark = Mapping[Ref, Mapping[str, Any]]


@dataclass(frozen=True)
class Converged:
    """What was changed (in a dry run: what would be), and the route as it was left: the baseline of the run's next converge."""

    changes: tuple[Change, ...]
    route: RouteMark


def converge(
    place: Place,
    delivery: str,
    resources: tuple[Resource, ...],
    baseline: RouteMark | None = None,
    *,
    dry_run: bool = False,
) -> Converged:
    """Offer every resource to ``put``, releases before the route, then delete ours of role release or route that are no longer wanted.

    Does not wait. Raises Permanent when somebody else changed the route since ``baseline``, and whatever ``put`` raises.
    """
    seen = place.world(delivery).objects
    if baseline is not None:
        _unmoved(baseline, seen)
    changes: list[Change] = []
    for resource in sorted(resources, key=lambda r: r.role == "route"):
        if place.put(resource, dry_run=True).action == "unchanged":
            continue
        changes.append(place.put(resource, dry_run=True) if dry_run else _put(place, resource, seen.get(resource.ref)))
    wanted = {r.ref for r in resources}
    gone = [
        o.resource for ref, o in sorted(seen.items()) if o.resource.role in ("release", "route") and ref not in wanted
    ]
    gone.sort(key=lambda r: r.role != "route")
    changes += [Change(old.ref, "deleted") if dry_run else place.delete(delivery, old.ref) for old in gone]
    return Converged(
        tuple(changes),
        {r.ref: {key: r.spec[key] for key in r.spec if key != "bind"} for r in resources if r.role == "route"},
    )


def _unmoved(baseline: RouteMark, seen: Mapping[Ref, Observed]) -> None:
    for ref, mark in baseline.items():
        now = seen.get(ref)
        if now is None or not _stands(now.resource.spec, mark):
            why = "it is gone" if now is None else f"it now says {dict(now.resource.spec)}"
            raise Permanent(
                Finding(
                    "todo",
                    f"{ref} was changed by somebody else during this run",
                    why,
                    "find out who, then run again: a rerun puts back what is missing",
                )
            )


def _stands(now: Mapping[str, Any], mark: Mapping[str, Any]) -> bool:
    """A Service that was adopted has ports of its own beside ours."""
    spec = dict(mark.get("spec", {}))
    ours, there = spec.pop("ports", ()), now.get("spec", {}).get("ports", ())
    rest = {**mark, "spec": spec} if "spec" in mark else mark
    return covers(now, rest) and all(any(covers(one, port) for one in there) for port in ours)


def _put(place: Place, resource: Resource, old: Observed | None) -> Change:
    if resource.role != "route":
        return place.put(resource)
    if old is None and resource.spec.get("bind", {}).get("adopted"):
        old = place.get(resource.delivery, resource.ref)
    try:
        return place.put(resource, expect=old.version if old else ABSENT)
    except Mismatch:
        new = place.get(resource.delivery, resource.ref)
        if old is None or new is None or new.resource != old.resource:
            raise Permanent(
                Finding(
                    "todo",
                    f"{resource.ref} was changed by somebody else",
                    "between reading and writing it",
                    "run again",
                )
            ) from None
        return place.put(resource, expect=new.version)
