"""Verbs about Prefect deployments: register."""

from __future__ import annotations

from pathlib import Path

import click

from model_delivery.cli import printing
from model_delivery.spec import load_spec


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--pool", default="local", show_default=True, help="The work pool whose workers run it.")
@printing.as_json
def register(file: Path, pool: str, as_json: bool) -> None:
    """Make, or bring up to date, the deployment deliver/NAME of the spec in FILE."""
    spec = load_spec(file)
    from model_delivery.flows.registration import register as make

    made, name = make(spec, pool), f"deliver/{spec.name}"
    lines = [f"registered {name} in pool {pool}", f"run it: prefect deployment run '{name}'"]
    if made.older:
        lines.append(
            f"made by an older version, and refused when run: {', '.join(made.older)}\n"
            "run `deliver register FILE` (or `prefect deploy --all`) again for each"
        )
    value = {"deployment": name, "id": made.id, "pool": pool, "older": made.older}
    printing.emit(value, machine=as_json, text="\n".join(lines))


VERBS = (register,)
