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

    made = make(spec, pool)
    text = f"registered deliver/{spec.name} in pool {pool}\nrun it: prefect deployment run 'deliver/{spec.name}'"
    printing.emit({"deployment": f"deliver/{spec.name}", "id": made, "pool": pool}, machine=as_json, text=text)


VERBS = (register,)
