"""``@step``: a Prefect task inside a flow run, a plain call outside; both try again what
may pass, with the same waits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import tenacity

from model_delivery.base import Finding, Permanent, Progress, Retryable, Trouble, report, short
from model_delivery.base.home import disk_full

if TYPE_CHECKING:
    from prefect.context import FlowRunContext

P = ParamSpec("P")
R = TypeVar("R")

RETRIES = 2
FIRST_DELAY_SECONDS = 5.0
JITTER = 0.3
_before: ContextVar[list[Any] | None] = ContextVar("states and results of the steps before", default=None)


def flow_run() -> FlowRunContext | None:
    """The context of the flow run that this code runs in. A process that never imported
    Prefect is in none.
    """
    prefect_context = sys.modules.get("prefect.context")
    return None if prefect_context is None else prefect_context.FlowRunContext.get()


def run_id() -> str | None:
    """The id of the flow run that this code runs in, None outside of one. A run that
    Prefect starts again keeps it.
    """
    context = flow_run()
    return None if context is None or context.flow_run is None else str(context.flow_run.id)


def pool() -> str | None:
    """The work pool of that run, None where it has none."""
    context = flow_run()
    return None if context is None or context.flow_run is None else context.flow_run.work_pool_name


@contextmanager
def in_order() -> Iterator[None]:
    """Inside, the page of a run shows each step after the one that ended before it."""
    token = _before.set([])
    try:
        yield
    finally:
        _before.reset(token)


def broken(error: Exception) -> Finding:
    if full := disk_full(error):
        return full
    what, why = "the run broke, and what was on its way was withdrawn", short(f"{type(error).__name__}: {error}", 300)
    return Finding("release.broke", what, why, "this is a fault of Model Delivery: report it")


def step(name: str, *, per_stage: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function a step of the DAG, shown as ``name``; ``per_stage``: with the phase
    of the Stage that is its first argument, as in ``ready (canary 10 %)``.

    It is tried again (twice, after about 5 and 10 s) only when it raises
    ``findings.Retryable``. In a run it is a task without parameters, cache or stored
    result. Context variables set around the call are seen inside it. A Trouble passes
    through unchanged; in a run a fault of ours becomes one.
    """

    def decorate(body: Callable[P, R]) -> Callable[P, R]:
        @wraps(body)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if flow_run() is None:
                return _tries(name)(body, *args, **kwargs)
            stage: Any = args[0] if per_stage else None
            return _in_run(name, f"{name} ({stage.phase.words})" if stage else name, body, *args, **kwargs)

        return call

    return decorate


def _tries(name: str) -> tenacity.Retrying:
    def tell(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, Retryable):
            report(Progress(name, f"{error.findings[0].what}: tried again in {state.upcoming_sleep:.0f} s"))

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(Retryable),
        stop=tenacity.stop_after_attempt(1 + RETRIES),
        wait=tenacity.wait_exponential(FIRST_DELAY_SECONDS) + tenacity.wait_random(0, JITTER * FIRST_DELAY_SECONDS),
        before_sleep=tell,
        reraise=True,
    )


def _in_run(name: str, shown: str, body: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """As a task. Prefect draws an arc for any part of an argument that came from another
    task, so it is given none; what it follows is said. It knows results by their address
    in memory, so each is kept: no later state may come to lie there.
    """
    from prefect import Task
    from prefect.cache_policies import NO_CACHE
    from prefect.tasks import exponential_backoff

    def bound() -> R:
        try:
            return body(*args, **kwargs)
        except Trouble:
            raise
        except Exception as error:  # its state would quote it
            raise Permanent(broken(error)) from error

    task = Task(
        bound,
        name=name,
        task_run_name=shown,
        description=(body.__doc__ or "").strip(),
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=RETRIES,
        retry_delay_seconds=exponential_backoff(FIRST_DELAY_SECONDS),
        retry_jitter_factor=JITTER,
        retry_condition_fn=_is_retryable,
        log_prints=False,
    )
    before = _before.get()
    state = task(return_state=True, wait_for=before and (before[-1][0],))
    result: R = state.result()
    if before is not None:
        before.append((state, result))
    return result


def _is_retryable(_task: Any, _run: Any, state: Any) -> bool:
    return isinstance(state.data, Retryable)
