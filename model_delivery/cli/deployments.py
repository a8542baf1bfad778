"""Verbs about Prefect deployments: register."""

from __future__ import annotations

from pathlib import Path

import click

from model_delivery.cli.printing import FILE, Answer, answers
from model_delivery.spec import load_spec


@click.command()
@FILE
@click.option("--pool", default="local", show_default=True, help="The work pool whose workers run it.")
@answers
def register(file: Path, pool: str) -> Answer:
    """Make, or bring up to date, the deployment deliver/NAME of the spec in FILE."""
    spec = load_spec(file)
    from model_delivery.flows.registration import register as make

    made, name = make(spec, pool), f"deliver/{spec.name}"
    lines = [f"registered {name} in pool {pool}", f"run it: prefect deployment run '{name}'"]
    if made.paused:
        lines.append("its schedule stays paused, as somebody set it in Prefect: resume it there")
    if made.older:
        lines += [
            f"made by an older version, and refused when run: {', '.join(made.older)}",
            "run `deliver register FILE` (or `prefect deploy --all`) again for each",
        ]
    return Answer({"deployment": name, "id": made.id, "pool": pool, "paused": made.paused, "older": made.older}, lines)


VERBS = (register,)
