"""Steps of a session: each runs near the data, and one that a killed run left is
adopted.
"""

from __future__ import annotations

from itertools import count
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from model_delivery.base import Finding, GateFailed, Permanent, Retryable, Trouble, default_home, problems
from model_delivery.models.store.commit import Fetched
from model_delivery.run.session import Session
from model_delivery.steps import Step
from model_delivery.steps.fetch import STEP as FETCH
from model_delivery.steps.fetch import FetchInput
from model_delivery.steps.run import read
from model_delivery.targets import StepRun
from model_delivery.values import Ended, Failed, InProgress, Ref, ReleaseId, Started, StepState

TRIES = 3
START_SECONDS = 1800.0
O = TypeVar("O", bound=BaseModel)


def run_step(session: Session, step: Step[Any, O], given: BaseModel, stage: str, release: ReleaseId | None = None) -> O:
    """Run ``step``, or adopt the one that a killed run of this attempt left; a try that
    ended retryably counts. How an earlier run's ended stands only where a gate said no:
    what else was in its way may be gone.

    For ``release``; where none is named, for the candidate.
    """
    candidate = session.record.candidate
    attempt = candidate.attempt if candidate else 0
    release = release or (candidate.release if candidate else None)
    frozen = session.frozen(release) if release else None
    patience = frozen.startup_timeout.seconds if frozen and frozen.startup_timeout else START_SECONDS
    payload, text, runner = frozen.payload if frozen else None, given.model_dump_json(), session.record.runner
    world = session.world()
    for number in count(1):
        asked = StepRun(session.delivery, step.name, text, stage, attempt, number, payload, runner, release)
        resources = session.target.step(asked)
        ref = resources[-1].ref
        seen = world.objects.get(ref)
        for resource in resources:
            session.place.put(resource)
        try:
            return _output(step, _followed(session, step.name, ref, patience))
        except GateFailed:
            raise
        except Trouble as trouble:
            left = seen is not None and seen.status.get("finished")
            if not left or (isinstance(trouble, Retryable) and number >= TRIES):
                raise
    raise AssertionError("unreachable: the last try returns or raises")


def fetch(session: Session, release: ReleaseId, stage: str) -> Fetched:
    """The weights of ``release``, verified, in the folder of their commit."""
    frozen = session.frozen(release)
    root = session.target.root(frozen.storage) or str(default_home())
    return run_step(
        session, FETCH, FetchInput(model=frozen.model, snapshot=frozen.lock.snapshot, root=root), stage, release
    )


def _output(step: Step[Any, O], text: str) -> O:
    try:
        return step.output.model_validate_json(text)
    except ValidationError as error:
        what, fix = f"the result of the {step.name} step cannot be read", "was it made by another version? run again"
        raise Permanent(Finding("step.bad-result", what, "; ".join(problems(error)[:3]), fix)) from None


def _followed(session: Session, name: str, ref: Ref, patience: float) -> str:
    """The step's result as JSON, once all of it has ended well; where there is none, what
    ended it from outside.
    """
    what, target, began = f"the {name} step", session.target, session.clock.monotonic()
    mark = session.until(what, lambda world: _mark(target.step_state(ref, world)), patience, "started")
    try:
        text = read(name, session.place.log(session.delivery, ref), mark)
    except Retryable:
        match target.step_state(ref, session.world()):
            case Failed(finding, retryable):
                raise (Retryable if retryable else Permanent)(finding) from None
        raise
    ended = session.until(what, lambda world: _over(target.step_state(ref, world)), patience, "ended", began)
    if ended.code:
        why = f"it ended with exit code {ended.code} all the same"
        raise Retryable(Finding("step.bad-exit", f"the result of {what} does not count", why, "run again"))
    return text


def _mark(state: StepState) -> str | InProgress | Failed:
    return state if isinstance(state, InProgress | Failed) else state.mark


def _over(state: StepState) -> Ended | InProgress | Failed:
    return InProgress(state.beside or "its process ends") if isinstance(state, Started) else state
