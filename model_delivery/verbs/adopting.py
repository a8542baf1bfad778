"""``deliver adopt``: what was made by hand comes under a spec, as it runs. First shown, then taken, then its weights are verified."""

from __future__ import annotations

import uuid
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import PurePosixPath

from model_delivery.base.clock import SystemClock
from model_delivery.base.findings import Finding, Refused
from model_delivery.base.secrets import from_cluster
from model_delivery.places import Place
from model_delivery.places.guarded import Observer, unobserved
from model_delivery.run.frozen import Frozen
from model_delivery.run.preflight import preflight
from model_delivery.run.protocol import READY_TIMEOUT, unchanged_digest
from model_delivery.run.record import Ended, Record, Wanted, load
from model_delivery.run.resolve import resolve_lock
from model_delivery.run.session import Session, opened
from model_delivery.spec import DeliverySpec
from model_delivery.steps.verify import STEP as VERIFY
from model_delivery.steps.verify import Verified, VerifyInput
from model_delivery.targets import Adoption as Found
from model_delivery.targets.kubernetes.pod import MOUNT
from model_delivery.targets.protocol import nothing_to_adopt
from model_delivery.values.release import Desired, Release, ReleaseId
from model_delivery.values.resources import ABSENT, RECORD_REF, digest

OUTCOME = "adopted"


@dataclass(frozen=True)
class Adoption:
    """What was found, before anything is touched. ``changes``: what taking it changes; ``differs``: what the spec would make of it, some day."""

    name: str
    what: str
    release: ReleaseId
    frozen: Frozen
    replicas: int
    changes: tuple[str, ...]
    differs: tuple[str, ...]


def look(place: Place, spec: DeliverySpec, named: str | None = None) -> Adoption:
    """Read the object ``named`` (default: as the delivery) and compare; nothing is touched. Refused with every reason why it cannot be adopted."""
    key = spec.target.key()
    target = key.target()
    if target.adopts is None:
        raise nothing_to_adopt(key.kind)
    preflight(spec, place, target)
    with from_cluster(place.secret):
        lock = resolve_lock(spec)
    seen = place.get(spec.name, RECORD_REF)
    session = Session(
        place, target, spec.name, "", SystemClock(), load(seen.resource.spec) if seen else Record(target=key), ABSENT
    )
    there = target.address(spec.name)
    found = target.adopt(spec, lock, named or spec.name, lambda ref: place.get(spec.name, ref))
    known = _known(session, found)
    meant = {
        "lock": lock,
        "unchanged": unchanged_digest(spec, lock),
        "model": spec.model,
        "storage": spec.storage,
        "startup_timeout": spec.serving.startup_timeout,
    }
    if known is None:
        made_now = {
            "payload": found.payload,
            "args": found.payload.args,
            "address": there,
            "created": session.clock.now(),
            "verified": False,
        }
        frozen = Frozen.model_validate({**meant, **made_now})
    else:
        frozen = (
            known if known.verified else known.model_copy(update=meant)
        )  # a revision that was wrong can be corrected
    release = session.record.serving if known and session.record.serving else digest(found.payload.content())
    want = Desired(spec.name, (Release(release, frozen.payload, found.replicas),), {release: 100}, there)
    claim = (
        resource
        for resource in target.storage(spec.name, lock, spec.storage)
        if resource.ref.kind.name == "PersistentVolumeClaim"
    )
    offered = [place.put(resource, dry_run=True) for resource in (*claim, *target.compose(want))]
    changes = tuple(
        f"{one.ref} {one.action}{f': {line}' if line else ''}"
        for one in offered
        if one.action != "unchanged"
        for line in one.diff or ("",)
    )
    scaled = (
        (f"replicas: {found.replicas} → {spec.serving.replicas.min}",)
        if found.replicas != spec.serving.replicas.min
        else ()
    )
    return Adoption(spec.name, found.what, release, frozen, found.replicas, changes, (*scaled, *found.differs))


def _known(session: Session, found: Found) -> Frozen | None:
    """The release that it is already. Refused where another one is delivered under the name."""
    record = session.record
    if record.serving is None and record.candidate is None:
        return None
    frozen = session.frozen(record.serving) if record.serving and record.candidate is None else None
    if frozen is None or frozen.payload.uid != found.payload.uid:
        why = f"release {record.serving or (record.candidate and record.candidate.release)} of it serves, or is on its way"
        raise Refused(
            Finding(
                "todo",
                f"{session.delivery} is delivered already",
                why,
                "give the delivery another name, or `deliver down` it first",
            )
        )
    return frozen


def take(place: Place, spec: DeliverySpec, found: Adoption, observer: Observer = unobserved) -> None:
    """The release's object first, then the record, then the objects: a run killed in between is finished by the next `adopt` or `up`."""
    with _opened(place, spec, observer) as session:
        record, now = session.record, session.clock.now()
        if record.serving is None and record.candidate is None:
            session.freeze(found.release, found.frozen)
            commit, attempt = found.frozen.lock.snapshot.commit, record.attempt_of(found.release)
            facts = {"commit": commit, "args": found.frozen.args, "message": found.what}
            ended = Ended(
                release=found.release,
                attempt=attempt,
                outcome=OUTCOME,
                request=session.request,
                exit_code=0,
                at=now,
                **facts,
            )
            session.write(
                serving=found.release,
                desired=Wanted(releases=((found.release, found.replicas),), traffic=((found.release, 100),)),
                address=found.frozen.address,
                replicas=found.replicas,
                ended=(*record.ended, ended),
                held=None,
                runner=spec.runner,
            )
        elif session.frozen(found.release) != found.frozen:
            session.freeze(found.release, found.frozen)
        session.converge()
        session.wait_ready(found.release, READY_TIMEOUT)
        session.wait_routed()


def verify(place: Place, spec: DeliverySpec, release: ReleaseId) -> Verified:
    """Compare its weights with what their source lists, near them. Permanent where they are others; then it stays unverified, and serves."""
    with _opened(place, spec) as session:
        frozen = session.frozen(release)
        verified = verify_weights(session, release, frozen)
        session.freeze(release, frozen.model_copy(update={"verified": True}))
        return verified


def _opened(place: Place, spec: DeliverySpec, observer: Observer = unobserved) -> AbstractContextManager[Session]:
    key = spec.target.key()
    return opened(
        place, spec.name, key.target(), key, request=uuid.uuid4().hex, when_busy=spec.concurrency, observer=observer
    )


def verify_weights(session: Session, release: ReleaseId, frozen: Frozen) -> Verified:
    """As a step, in the folder that an adopted release reads from."""
    folder = str(PurePosixPath(MOUNT, str(frozen.payload.by_hand)))
    given = VerifyInput(snapshot=frozen.lock.snapshot, folder=folder, allow=frozen.model.allow)
    return session.run_step(VERIFY, given, "verify", release)
