"""The steps that look for drift, and tell of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from model_delivery.base import Progress, Trouble, report
from model_delivery.places.opening import Location
from model_delivery.spec import DeliverySpec
from model_delivery.tasks import artifacts, events
from model_delivery.tasks.events import Event
from model_delivery.tasks.step import step
from model_delivery.verbs.drift import Drift, drift

Known = tuple[str, str, Callable[[], DeliverySpec]]
Found = list[tuple[str, Drift]]


@step("look")
def look(deliveries: Sequence[Known]) -> Found:
    """Each delivery by itself, with the pool that it is registered for: one that cannot
    be looked at is unknown.
    """
    found = Found()
    for number, (name, pool, read) in enumerate(deliveries):
        report(Progress("look", name, done=number, total=len(deliveries), unit="deliveries"))
        try:
            spec = read()
            seen = drift(Location.of(spec.target.key()).open(), spec)
        except Trouble as trouble:
            seen = Drift(name, unknown=tuple(map(str, trouble.findings)))
        found.append((pool, seen))
    return found


@step("tell")
def tell(found: Found) -> dict[str, Any]:
    """An event for each kind of each delivery, and the table."""
    for pool, one in found:
        moved = {f"{each.part}_{when}": getattr(each, when) for each in one.upstream for when in ("before", "now")}
        for kind, facts in (("upstream", moved), ("live", {"changes": list(one.live)})):
            if lines := getattr(one, kind):
                told = {"kind": kind, "what": "; ".join(map(str, lines)), **facts}
                labels = {"model-delivery.drift": kind, "model-delivery.pool": pool}
                events.tell(Event.DRIFT, one.name, one.release, facts=told, labels=labels)
    every = [one for _, one in found]
    lines = [f"{one.name}: {line}" for one in every for line in (*one.upstream, *one.live, *one.unknown)]
    artifacts.publish_table("drift", "Drift", {one.name: one.result for one in every}, lines)
    return {"result": _result(every), "deliveries": [asdict(one) for one in every]}


def _result(every: Sequence[Drift]) -> str:
    found = ", ".join(one.name for one in every if one.upstream or one.live)
    unknown = ", ".join(one.name for one in every if one.unknown)
    quiet = "" if every and all(one.unknown for one in every) else "no drift"
    told = f"drift found: {found}" if found else quiet
    return "; ".join(filter(None, (told, f"unknown: {unknown}" if unknown else "")))
