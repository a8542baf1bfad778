"""The one verb: make the place hold what is wanted, and nothing else of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from model_delivery.base import Finding, Permanent
from model_delivery.places import Place
from model_delivery.values import ABSENT, RUNS, Change, Mismatch, Observed, Ref, Resource, World, covers

RouteMark = Mapping[Ref, Mapping[str, Any]]
Lead = Callable[[Resource, Observed | None], Observed | None]


@dataclass(frozen=True)
class Converged:
    """What was changed, what of others' was left, and the route as it was left: the
    baseline of the run's next converge.
    """

    changes: tuple[Change, ...]
    beside: tuple[Change, ...]
    route: RouteMark


def converge(
    place: Place,
    delivery: str,
    resources: tuple[Resource, ...],
    baseline: RouteMark | None = None,
    lead: Lead = lambda _, seen: seen,
) -> Converged:
    """Offer every resource to ``put``, releases before the route, then delete ours that
    are no longer wanted; what shall sleep comes last, when nobody is led there any more.

    ``lead`` brings the route, as it is seen, to where it can be written, and returns how
    it is seen then. Else nothing is waited for. Raises Permanent when somebody else
    changed the route since ``baseline``, and whatever ``put`` raises.
    """
    world = place.world(delivery)
    _unmoved(baseline or {}, world)
    changes, beside = list[Change](), list[Change]()
    for resource in _ordered(resource for resource in resources if resource.role != "standby"):
        offered = place.put(resource, dry_run=True)
        if offered.action != "unchanged":
            seen = world.objects.get(resource.ref)
            changes.append(put(place, resource, lead(resource, seen) if resource.role == "route" else seen))
        if offered.stays:
            beside.append(offered)
    changes += [place.delete(delivery, ref) for ref in unwanted(world, resources)]
    asleep = (place.put(resource) for resource in resources if resource.role == "standby")
    changes += [change for change in asleep if change.action != "unchanged"]
    route = _route(place, world, resources, {change.ref for change in changes})
    return Converged(tuple(changes), tuple(beside), route)


def changes(place: Place, delivery: str, resources: tuple[Resource, ...]) -> tuple[Change, ...]:
    """What ``converge`` would change, and what of others' it would leave; nothing is
    touched.
    """
    offered = [place.put(resource, dry_run=True) for resource in _ordered(resources)]
    gone = [Change(ref, "deleted") for ref in unwanted(place.world(delivery), resources)]
    return (*(change for change in offered if change.action != "unchanged" or change.stays or change.harmless), *gone)


def _ordered(resources: Iterable[Resource]) -> list[Resource]:
    return sorted(resources, key=lambda resource: resource.role == "route")


def unwanted(world: World, resources: Iterable[Resource]) -> list[Ref]:
    """Ours of a release or the route that are not among ``resources``, the route's
    first.
    """
    wanted = {resource.ref for resource in resources}
    ours = [
        seen.resource for ref, seen in sorted(world.objects.items()) if seen.resource.role in RUNS and ref not in wanted
    ]
    return [resource.ref for resource in sorted(ours, key=lambda resource: resource.role != "route")]


def _route(place: Place, world: World, resources: Iterable[Resource], changed: set[Ref]) -> RouteMark:
    """What we want of it as the place holds it now: a list may have others' entries
    beside ours.
    """
    marks = dict[Ref, Mapping[str, Any]]()
    for resource in resources:
        if resource.role == "route":
            ref = resource.ref
            seen = place.get(resource.delivery, ref) if ref in changed else world.objects.get(ref)
            marks |= mark(resource, seen)
    return marks


def mark(route: Resource, seen: Observed | None) -> RouteMark:
    return {route.ref: _part(seen.resource.spec, route.spec)} if seen else {}


def _part(now: Any, wanted: Any) -> Any:
    if isinstance(now, Mapping) and isinstance(wanted, Mapping):
        return {key: _part(now[key], value) for key, value in wanted.items() if key in now}
    return now


def _unmoved(baseline: RouteMark, world: World) -> None:
    for ref, was in baseline.items():
        now = world.objects.get(ref)
        if now is None or not covers(now.resource.spec, was):
            what = f"{ref} was changed by somebody else during this run"
            why = "it is gone" if now is None else f"it now says {dict(now.resource.spec)}"
            fix = "find out who, then run again: a rerun puts back what is missing"
            raise Permanent(Finding("rollout.route-changed", what, why, fix))


def put(place: Place, resource: Resource, seen: Observed | None) -> Change:
    """The route only over what was ``seen``, or what says the same."""
    if resource.role != "route":
        return place.put(resource)
    old = seen or place.get(resource.delivery, resource.ref)
    try:
        return place.put(resource, expect=old.version if old else ABSENT)
    except Mismatch:
        new = place.get(resource.delivery, resource.ref)
        if old is None or new is None or new.resource != old.resource:
            what, why = f"{resource.ref} was changed by somebody else", "between reading and writing it"
            raise Permanent(Finding("rollout.route-raced", what, why, "run again")) from None
        return place.put(resource, expect=new.version)
