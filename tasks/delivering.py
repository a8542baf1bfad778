"""The steps of the DAG but its gates: bodies of a few lines over a session."""

from __future__ import annotations

from dataclasses import replace

from model_delivery.base import (
    Duration,
    Permanent,
    Progress,
    Trouble,
    report,
)
from model_delivery.run import protocol, racing, starting, watching
from model_delivery.run.answering import finding, probe, restart, wait_led
from model_delivery.run.plan import Route
from model_delivery.run.protocol import Admission
from model_delivery.run.resolve import resolve_lock
from model_delivery.run.rules import Answer
from model_delivery.run.session import current
from model_delivery.run.stepping import fetch as fetch_weights
from model_delivery.spec import DeliverySpec
from model_delivery.tasks import artifacts, events
from model_delivery.tasks.events import Event
from model_delivery.tasks.step import step
from model_delivery.values import FETCH as FETCHING
from model_delivery.values import (
    Failed,
    Lock,
    Rollout,
    Stage,
)
from model_delivery.verbs.adopt import verify_weights
from model_delivery.verbs.plan import differs

EVERYTHING = 10**6
AT_ONCE = Duration("0s")
ROLLBACK = Rollout(
    strategy="blue-green",
    when_full="recreate",
    watch=AT_ONCE,
    standby=AT_ONCE,
    standby_mode="sleep",
    keep=EVERYTHING,
    history=EVERYTHING,
)


@step("resolve")
def resolve(spec: DeliverySpec) -> Lock:
    """Branch → commit with its files; engine → its content. When that fails, what serves
    is still looked after.
    """
    session = current()
    try:
        return resolve_lock(spec, session)
    except Trouble:
        protocol.look_after(session)
        raise


@step("plan")
def plan(spec: DeliverySpec, lock: Lock, scheduled: bool) -> Admission:
    """What this request comes to; what is left of an earlier run is adopted or undone."""
    session = current()
    admission = protocol.admit(session, spec, lock, scheduled=scheduled)
    table = artifacts.plan_table(spec, lock, admission, session.record.serving, session.target.can)
    delivers = admission.answer.delivers
    artifacts.publish_plan(table, differs(session, session.frozen(admission.release)) if delivers else ())
    if admission.answer is Answer.NEW:
        events.tell(Event.PROPOSED, session.delivery, admission.release)
    return admission


@step("answers")
def answers(admission: Admission) -> Admission:
    """What serves still gives tokens, or is started anew."""
    session, asked = current(), (Answer.UNCHANGED, Answer.HEALED, Answer.HELD)
    serving = session.record.serving if admission.answer in asked else None
    if serving is None:
        return admission
    found = probe(session, serving)
    if found.unasked:
        report(Progress("answers", f"{serving} cannot be asked for a token: {found.unasked}"))
    if found.silent:
        events.tell(Event.WEDGED, session.delivery, serving, Permanent(finding(session.delivery, found.why)))
        restart(session, serving, found)
        admission = replace(admission, answer=Answer.HEALED)
    if admission.answer is Answer.HEALED:
        wait_led(session)
    return admission


@step("choose")
def choose(to: str | None) -> Admission:
    """Fix the release to go back to."""
    return protocol.start_rollback(current(), to, ROLLBACK)


@step("storage")
def storage() -> None:
    """The folder of the models, and the engine's environment."""
    session = current()
    frozen = session.frozen(session.candidate.release)
    for resource in session.target.storage(session.delivery, frozen.lock, frozen.storage):
        session.place.put(resource)


@step("fetch")
def fetch() -> None:
    """The model, verified, in the folder of its commit."""
    session = current()
    candidate, frozen = session.candidate, session.frozen(session.candidate.release)
    if candidate.phase != FETCHING:
        return
    if frozen.payload.by_hand is not None:
        verify_weights(session, candidate.release, frozen)
        return
    fetch_weights(session, candidate.release, "fetch")


@step("release", per_stage=True)
def release(stage: Stage, way: Route) -> None:
    """Make it so: the stage's releases and traffic."""
    protocol.enter(current(), stage, way.strategy)


@step("ready", per_stage=True)
def ready(stage: Stage) -> str:
    """The candidate's own endpoint, once it is ready and the traffic is where it shall
    be.

    A retry starts again what may come up then.
    """
    session = current()
    candidate = session.candidate.release
    if candidate not in stage.desired.awake:
        return ""
    match session.target.readiness(session.release(candidate), session.world()):
        case Failed(retryable=True):
            session.converge()
    endpoint = starting.wait_ready(session, candidate)
    protocol.wait_routed(session, stage)
    return endpoint


def races(stage: Stage) -> bool:
    """Do the candidate's loaders race there?"""
    return racing.wanted(current(), stage)


@step("race", per_stage=True)
def race(stage: Stage, endpoint: str, way: Route) -> str:  # noqa: ARG001 - the stage is shown
    """Its endpoint, once it is started with the loader that has won; nothing serves from
    it meanwhile.
    """
    return racing.race(current(), endpoint, way.strategy)


@step("watch", per_stage=True)
def watch(stage: Stage) -> None:
    """Look after the candidate while it has traffic; GateFailed when it does not stay
    ready.
    """
    watching.watch(current(), stage)


@step("promote")
def promote() -> None:
    """From now on it is what serves. A first one's address answers then."""
    session = current()
    candidate, first = session.candidate, session.record.serving is None
    protocol.promote(session)
    if first:
        wait_led(session)
    event = Event.ROLLED_BACK if candidate.kind == "rollback" else Event.PROMOTED
    events.tell(event, session.delivery, candidate.release)


@step("collect")
def collect(rollout: Rollout) -> None:
    """Remove what is due."""
    protocol.collect(current(), rollout)
