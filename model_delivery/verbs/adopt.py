"""``deliver adopt``: what was made by hand comes under a spec, as it runs. Shown, taken,
then its weights are verified.
"""

from __future__ import annotations

import uuid
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from posixpath import join

from model_delivery.base import Finding, Refused, SystemClock, Trouble, from_cluster
from model_delivery.places import Place
from model_delivery.run import rules
from model_delivery.run.book import Book, read_or_new
from model_delivery.run.frozen import Frozen
from model_delivery.run.plan import unchanged_digest
from model_delivery.run.preflight import preflight
from model_delivery.run.protocol import READY_SECONDS, sweep, take_down
from model_delivery.run.record import Ended, Outcome
from model_delivery.run.resolve import resolve_lock
from model_delivery.run.session import Session, opened
from model_delivery.run.stepping import run_step
from model_delivery.spec import DeliverySpec
from model_delivery.steps.smoke import STEP as SMOKE
from model_delivery.steps.smoke import SmokeInput
from model_delivery.steps.verify import STEP as VERIFY
from model_delivery.steps.verify import Verified, VerifyInput
from model_delivery.targets import Adoption
from model_delivery.targets.kubernetes.kinds import CLAIM
from model_delivery.targets.protocol import nothing_to_adopt
from model_delivery.values import (
    RELEASE,
    Change,
    Desired,
    InProgress,
    Lock,
    Readiness,
    Ref,
    Release,
    ReleaseId,
    Resource,
    World,
    digest,
)


@dataclass(frozen=True)
class Offer:
    """What was found, before anything is touched.

    ``changes``: what taking it changes; ``differs``: what the spec would make of it, with
    the next release.
    """

    name: str
    what: str
    release: ReleaseId
    frozen: Frozen
    replicas: int
    changes: tuple[str, ...]
    differs: tuple[str, ...]


def look(place: Place, spec: DeliverySpec, named: str | None = None) -> Offer:
    """Read the object ``named`` (default: as the delivery) and compare; nothing is
    touched.

    Refused with every reason why it cannot be adopted.
    """
    book = read_or_new(place, spec.name, spec.target.key())
    target = book.target
    if not target.adopts:
        raise nothing_to_adopt(book.record.target.kind)
    preflight(spec, place, target)
    with from_cluster(place.secret):
        lock = resolve_lock(spec)
    found = target.adopt(spec, lock, named or spec.name, lambda ref: place.get(spec.name, ref))
    known = _known(book, found)
    frozen = _frozen(book, spec, lock, found, known)
    release = book.record.serving if known and book.record.serving else digest(found.payload.content())
    there = target.address(spec.name)
    want = Desired(spec.name, (Release(release, frozen.payload, found.replicas),), {release: 100}, there)
    claims = [resource for resource in target.storage(spec.name, lock, spec.storage) if resource.ref.kind == CLAIM]
    changes = tuple(line for resource in (*claims, *target.compose(want)) for line in _lines(place, resource))
    replicas = spec.serving.replicas.min
    scaled = (f"replicas: {found.replicas} → {replicas}",) if found.replicas != replicas else ()
    return Offer(spec.name, found.what, release, frozen, found.replicas, changes, (*scaled, *found.differs))


def _lines(place: Place, resource: Resource) -> list[str]:
    offered: Change = place.put(resource, dry_run=True)
    if offered.action == "unchanged":
        return []
    return [f"{offered.ref} {offered.action}{f': {line}' if line else ''}" for line in offered.diff or ("",)]


def _frozen(book: Book, spec: DeliverySpec, lock: Lock, found: Adoption, known: Frozen | None) -> Frozen:
    """As it is known already; until it is verified, a revision that was wrong can be
    corrected.
    """
    if known is not None and known.verified:
        return known
    payload = known.payload if known else found.payload
    return Frozen(
        payload=payload,
        lock=lock,
        unchanged=unchanged_digest(spec, lock),
        model=spec.model,
        storage=spec.storage,
        args=payload.args,
        startup_timeout=spec.serving.startup_timeout,
        address=known.address if known else book.target.address(spec.name),
        created=known.created if known else SystemClock().now(),
        verified=False,
    )


def _known(book: Book, found: Adoption) -> Frozen | None:
    """The release that it is already. Refused where another one is delivered under the
    name.
    """
    record = book.record
    if not record.active:
        return None
    frozen = book.frozen(record.serving) if record.serving and record.candidate is None else None
    if frozen is None or frozen.payload.uid != found.payload.uid:
        release = record.serving or (record.candidate and record.candidate.release)
        why = f"release {release} of it serves, or is on its way"
        fix = "give the delivery another name, or `deliver down` it first"
        raise Refused(Finding("adopt.delivered-already", f"{book.delivery} is delivered already", why, fix))
    return frozen


def take(place: Place, spec: DeliverySpec, found: Offer) -> None:
    """The release's object first, then the record, then the objects: the next `adopt` or
    `up` finishes a killed one.
    """
    with _opened(place, spec) as session:
        if new := not session.record.active:
            session.freeze(found.release, found.frozen)
            _must_answer(session, spec, found)
            ended = _ended(session, found)
            address = found.frozen.address
            session.write(rules.adopted(session.record, ended, found.replicas, address, spec.runner))
        elif session.frozen(found.release) != found.frozen:
            session.freeze(found.release, found.frozen)
        try:
            session.converge()
        except Refused:
            if new:  # another delivery was faster
                take_down(session)
            raise
        session.wait_ready(found.release, READY_SECONDS)
        session.wait_routed()


def _must_answer(session: Session, spec: DeliverySpec, found: Offer) -> None:
    """Ask its engine for a token, by a Job of the smoke test: what is ready may stand
    still, and may listen where nobody asks. Refused then, and nothing is touched.
    """
    release, payload = Release(found.release, found.frozen.payload, found.replicas), found.frozen.payload
    main, target = session.target.main(session.delivery, release), session.target

    def judged(world: World) -> Readiness:
        seen = session.place.get(session.delivery, main)
        return target.asked_at(release, world, seen) if seen else InProgress(f"{main} is gone")

    session.record = replace(session.record, runner=spec.runner)
    try:
        url = session.until(found.what, judged, READY_SECONDS).endpoint
        given = SmokeInput(
            url=url, api_key=payload.api_key, model_names=payload.names[:1], prompt="1", expect="", max_tokens=8
        )
        smoked = run_step(session, SMOKE, given, f"adopt-{session.request}", found.release)
        told = [check for check in smoked.checks if check.name.startswith(("chat", "completions"))]
        if not any(check.passed for check in told):
            why = f"asked at {url}: {told[0].detail}"
            fix = "let its engine listen on the port that its words and its container name, and serve the spec's model"
            raise Refused(Finding("adopt.silent", f"{found.what} gives no token", why, fix))
    except Trouble:
        session.place.delete(session.delivery, Ref(RELEASE, found.release))
        raise
    finally:
        sweep(session)


def _ended(session: Session, found: Offer) -> Ended:
    facts = found.frozen.facts
    return Ended(
        release=found.release,
        attempt=session.record.attempt_of(found.release),
        outcome=Outcome.ADOPTED,
        request=session.request,
        exit_code=0,
        at=session.clock.now(),
        commit=facts.commit,
        args=facts.args,
        message=found.what,
    )


def verify(place: Place, spec: DeliverySpec, release: ReleaseId) -> Verified:
    """Compare its weights with what their source lists, near them.

    Permanent where they are others; then it stays unverified, and serves.
    """
    with _opened(place, spec) as session:
        frozen = session.frozen(release)
        verified = verify_weights(session, release, frozen)
        session.freeze(release, frozen.model_copy(update={"verified": True}))
        return verified


def verify_weights(session: Session, release: ReleaseId, frozen: Frozen) -> Verified:
    """As a step, in the folder that an adopted release reads from."""
    folder = join(str(session.target.root(frozen.storage)), str(frozen.payload.by_hand))
    given = VerifyInput(snapshot=frozen.lock.snapshot, folder=folder, allow=frozen.model.allow)
    return run_step(session, VERIFY, given, "verify", release)


def _opened(place: Place, spec: DeliverySpec) -> AbstractContextManager[Session]:
    return opened(place, spec.name, spec.target.key(), request=uuid.uuid4().hex, when_busy=spec.concurrency)
