"""Verbs on models alone: fetch, verify, gc."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from pydantic import TypeAdapter, ValidationError

from model_delivery.base.findings import BadInput, Finding, Permanent
from model_delivery.base.home import default_home
from model_delivery.cli import printing
from model_delivery.models.sources.model import Model
from model_delivery.verbs import models

SOURCES = ("huggingface", "modelscope", "git", "local")
FORM = "write SOURCE:REPO[@REVISION], as huggingface:org/model@main, git:https://host/x.git@main or local:FOLDER"
MODEL: TypeAdapter[Model] = TypeAdapter(Model)


@click.command()
@click.argument("model", metavar="SOURCE:REPO[@REV]")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--token-env", metavar="NAME", help="The environment variable that holds the hub's token.")
@click.option("--include", multiple=True, metavar="PATTERN", help="Files to fetch; default: what an engine needs.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Files to leave out.")
@click.option("--allow", multiple=True, type=click.Choice(["pickle", "remote-code"]), help="Take files that run code.")
@click.option(
    "--fallback",
    multiple=True,
    metavar="SOURCE:REPO[@REV]",
    help="Where a file is taken from when the first source cannot give it.",
)
@click.option("--pin", multiple=True, metavar="FILE=SHA256", help="The sum that a file must have, whoever gives it.")
@printing.as_json
def fetch(model: str, folder: Path, as_json: bool, **more: Any) -> None:
    """Fetch a model into DIR, every file verified, the manifest last. What is there is adopted; a fetch that was cut goes on."""
    wanted = _model(model, more)
    with printing.progress_lines():
        done = models.fetch(wanted, folder.absolute())
    lines = f"{done.path}: {done.files} files, {done.bytes:,} bytes, verified; {done.fetched_bytes:,} bytes moved in {done.seconds:.1f} s"
    origins = "".join(f"\n  {count} from {origin}" for origin, count in sorted(done.origins.items()))
    printing.emit(done.model_dump(mode="json"), machine=as_json, text=lines + origins)


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--deep", is_flag=True, help="Read every byte; else names and sizes are compared.")
@printing.as_json
def verify(folder: Path, deep: bool, as_json: bool) -> None:
    """Does DIR hold what its manifest says? Offline, from the manifest alone."""
    with printing.progress_lines():
        manifest, found = models.verified(folder.absolute(), deep=deep)
    value = {"folder": str(folder), "deep": deep, "findings": [f.to_json() for f in found]}
    if found:
        raise printing.Unhappy(Permanent(*found), value)
    if as_json:
        printing.emit(value, machine=True)
    if manifest is not None and not as_json:
        size = sum(entry.size for entry in manifest.files)
        checked = "every byte" if deep else "names and sizes; --deep reads every byte"
        click.echo(
            f"{folder}: {len(manifest.files)} files, {size:,} bytes, whole ({checked})\n  {manifest.source} {manifest.key} at {manifest.commit}"
        )


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what would go.")
@printing.as_json
def gc(dry_run: bool, as_json: bool) -> None:
    """Remove models that no release needs any more, and what dead fetches left. What a rollback could want stays."""
    found = models.collect(default_home(), dry_run=dry_run)
    if as_json:
        printing.emit([asdict(one) for one in found], machine=True)
        return
    for one in found:
        click.echo(f"{'would remove' if dry_run else 'removed'} {one.path}: {one.bytes:,} bytes, {one.why}")
    click.echo(
        f"{sum(one.bytes for one in found):,} bytes {'would be ' if dry_run else ''}freed"
        if found
        else "nothing to remove"
    )


def _model(text: str, more: dict[str, Any]) -> Model:
    given = _address(text) | {key: list(more[key]) for key in ("include", "exclude", "allow") if more[key]}
    if more["token_env"]:
        given["token"] = {"env": more["token_env"]}
    if more["fallback"]:
        others = [_address(other) for other in more["fallback"]]
        given["fallback"] = [
            {"revision": "master" if one["source"] == "modelscope" else "main"} | one for one in others
        ]
    if more["pin"]:
        given["pins"] = dict(pin.partition("=")[::2] for pin in more["pin"])
    try:
        return MODEL.validate_python(given)
    except ValidationError as error:
        findings = [
            Finding("todo", f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}", f"in {text}", FORM)
            for e in error.errors()
        ]
        raise BadInput(*findings) from None


def _address(text: str) -> dict[str, Any]:
    source, colon, repo = text.partition(":")
    if source not in SOURCES or not colon or not repo:
        raise BadInput(Finding("todo", f"{text!r} names no model", f"known sources: {', '.join(SOURCES)}", FORM))
    if source == "local":
        return {"source": source, "path": str(Path(repo).expanduser().absolute())}
    pattern = r"(.+?\.git|.*/[^/@]+)@(.+)" if source == "git" else r"([^@]+)@(.+)"
    found = re.fullmatch(pattern, repo)
    return {"source": source, "repo": found[1], "revision": found[2]} if found else {"source": source, "repo": repo}


VERBS = (fetch, verify, gc)
