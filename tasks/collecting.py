"""The steps that remove what is due at a place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from model_delivery.base import Finding, Permanent, Trouble
from model_delivery.base.home import usable_home
from model_delivery.places.opening import Location
from model_delivery.tasks import artifacts
from model_delivery.tasks.delivering import ROLLBACK
from model_delivery.tasks.step import step
from model_delivery.verbs import models
from model_delivery.verbs.collect import collect

BUSY = "lease.held"


@dataclass
class Tidied:
    """What went, or in a dry run would; the deliveries that a run is at work on; why
    others could not be tidied.
    """

    gone: list[str] = field(default_factory=list)
    busy: list[str] = field(default_factory=list)
    bad: list[Finding] = field(default_factory=list)


@step("deliveries")
def deliveries(where: Location, dry_run: bool) -> Tidied:
    """Each by itself."""
    place, done = where.open(), Tidied()
    for name in place.deliveries():
        try:
            done.gone += (f"{name}: {line}" for line in collect(place, name, ROLLBACK, dry_run=dry_run))
        except Trouble as trouble:
            if any(finding.code == BUSY for finding in trouble.findings):
                done.busy.append(name)
            else:
                done.bad += trouble.findings
    return done


@step("models")
def models_of_host(where: Location, dry_run: bool) -> Tidied:
    """As `deliver gc`. In a cluster a claim may be anybody's, and is left as it is."""
    if where.namespace is not None:
        return Tidied()
    try:
        found = models.collect(usable_home(), dry_run=dry_run)
    except Trouble as trouble:
        return Tidied(bad=[*trouble.findings])
    return Tidied([f"{item.path}: {item.bytes:,} bytes, {item.why}" for item in found])


@step("tell")
def tell(tidied: Tidied, folders: Tidied, dry_run: bool) -> dict[str, Any]:
    """The table; Permanent where something could not be tidied."""
    gone, done = [*tidied.gone, *folders.gone], "would be removed" if dry_run else "removed"
    result = f"{len(gone)} {done}" if gone else "nothing to remove"
    busy = ", ".join(tidied.busy) or "none"
    artifacts.publish_table("collected", "Collect", {"result": result, "left alone (a run is at work)": busy}, gone)
    if bad := [*tidied.bad, *folders.bad]:
        raise Permanent(*bad)
    return {"result": result, "items": gone, "busy": tidied.busy}
