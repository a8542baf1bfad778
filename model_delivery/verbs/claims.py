"""What the claims of a namespace hold, and no release needs any more: removed by a Job,
which sees them.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path

from model_delivery.base import BadInput, SystemClock
from model_delivery.models.manifest import folder_name
from model_delivery.models.store.garbage import Garbage
from model_delivery.places.cluster.place import Cluster
from model_delivery.run.frozen import releases
from model_delivery.run.lease import Lease
from model_delivery.run.restore import must_know, read
from model_delivery.run.session import Session, opened
from model_delivery.run.stepping import run_step
from model_delivery.steps.gc import STEP, GcInput, Item
from model_delivery.targets import TargetKey
from model_delivery.targets.kubernetes.caches import FOLDER
from model_delivery.targets.kubernetes.release import MOUNT, ClusterPayload
from model_delivery.values import ReleaseId


def collect(context: str | None, namespace: str, *, dry_run: bool) -> tuple[Garbage, ...]:
    """What went, or in a dry run would, as ``CLAIM:FOLDER``. No delivery of the namespace
    may run meanwhile: Refused where one does.
    """
    place, request, items = Cluster(context, namespace), uuid.uuid4().hex, list[Garbage]()
    with ExitStack() as held:
        sessions = {name: held.enter_context(_held(place, name, request)) for name in place.at_work()}
        for claim, users in sorted(_users(place).items()):
            folders = {folder for _, _, folder in users}
            kept = tuple(sorted(folder for folder in folders if folder.startswith(f"{FOLDER}/")))
            wanted = tuple(sorted(folders - {*kept}))
            able = ((session, release) for name, release, _ in users if (session := sessions.get(name)))
            for session, release in islice(able, 1):
                found = _run(session, release, GcInput(root=MOUNT, wanted=wanted, dry_run=dry_run, caches=kept))
                items += (Garbage(Path(f"{claim}:{item.path}"), item.bytes, item.why) for item in found)
    return tuple(items)


@contextmanager
def _held(place: Cluster, name: str, request: str) -> Iterator[Session | None]:
    """None: there is no record, but its first run may be making one."""
    if key := _key(place, name):
        with opened(place, name, key, request=request, when_busy="refuse") as session:
            yield session
        return
    lease = Lease(place, name, request, SystemClock())
    lease.acquire("refuse")
    with lease.kept():
        yield None


def _key(place: Cluster, name: str) -> TargetKey | None:
    try:
        return read(place, name).record.target
    except BadInput:
        return None


def _users(place: Cluster) -> dict[str, list[tuple[str, ReleaseId, str]]]:
    """By claim: the delivery, the release and the folder of each release that is known,
    whatever became of its record. Refused where one runs of which nothing is.
    """
    users = defaultdict[str, list[tuple[str, ReleaseId, str]]](list)
    for delivery in place.deliveries():
        world = place.world(delivery)
        must_know(delivery, world)
        for release, frozen in releases(world).items():
            if isinstance(frozen.payload, ClusterPayload):
                folders = {folder_name(frozen.lock.snapshot), frozen.payload.by_hand, *frozen.payload.caches}
                users[frozen.payload.claim] += [(delivery, release, folder) for folder in folders if folder]
    return users


def _run(session: Session, release: ReleaseId, given: GcInput) -> tuple[Item, ...]:
    try:
        return run_step(session, STEP, given, f"gc {session.request}", release).items
    finally:
        _forget(session)


def _forget(session: Session) -> None:
    for ref, seen in session.world().objects.items():
        if seen.resource.role == "step" and ref.name.startswith(f"{session.delivery}-{STEP.name}-"):
            session.place.delete(session.delivery, ref)
