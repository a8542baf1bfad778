"""Deployments of an older version call their flows ``flows.deliver.deliver``: their runs
say what to do.

``collection`` is loaded by a Prefect worker; ``flows`` is what its runs then find, but
only where nothing else is called so: a folder without ``__init__.py`` is the last that
Python takes.
"""

from __future__ import annotations

from model_delivery.base import Finding, Permanent

ENTRYPOINTS = ("flows.deliver.deliver", "flows.rollback.rollback")


def refusal(entrypoint: str) -> Permanent:
    return Permanent(
        Finding(
            "prefect.older-deployment",
            "this deployment was made by an older version of Model Delivery",
            f"its entrypoint is {entrypoint}",
            "run `deliver register FILE` (or `prefect deploy --all`) again",
        )
    )
