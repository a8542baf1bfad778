"""The race of a candidate's loaders, as a step of the DAG."""

from __future__ import annotations

from model_delivery.run import racing
from model_delivery.run.plan import Route
from model_delivery.run.session import current
from model_delivery.tasks.step import step
from model_delivery.values import Stage


def races(stage: Stage) -> bool:
    """Do the candidate's loaders race there?"""
    return racing.wanted(current(), stage)


@step("race", per_stage=True)
def race(stage: Stage, endpoint: str, way: Route) -> str:  # noqa: ARG001 - the stage is shown
    """Its endpoint, once it is started with the loader that has won; nothing serves from
    it meanwhile.
    """
    return racing.race(current(), endpoint, way.strategy)
