"""A delivery's own books, where somebody deleted one of them."""

from __future__ import annotations

from dataclasses import replace

from model_delivery.base.progress import Progress, report
from model_delivery.run.frozen import Frozen
from model_delivery.run.record import Wanted
from model_delivery.run.session import Session, frozen_releases, release_ref
from model_delivery.spec import DeliverySpec
from model_delivery.values.readiness import Current
from model_delivery.values.release import ReleaseId
from model_delivery.values.resources import ABSENT


def restore(session: Session, spec: DeliverySpec, release: ReleaseId, frozen: Frozen) -> None:
    """Bring back the record, while one of its releases has all of the traffic, and the object of a wanted release that ``spec`` makes again."""
    if session.version == ABSENT:
        world = session.place.world(session.delivery)
        for name, known in frozen_releases(world).items():
            alone = Wanted(releases=((name, spec.serving.replicas.min),), traffic=((name, 100),))
            address = known.address
            if address and isinstance(
                session.target.routed(replace(session.desired(alone), address=address), world), Current
            ):
                session.write(serving=name, desired=alone, address=known.address, replicas=spec.serving.replicas.min)
                report(Progress("record", f"it was gone; {name} has all of the traffic, so that is what serves"))
                break
    wanted = {name for name, _ in session.record.desired.releases} | {session.record.serving}
    if release in wanted and session.place.get(session.delivery, release_ref(release)) is None:
        session.freeze(release, frozen)
