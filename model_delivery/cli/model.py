"""Verbs on models alone: fetch, verify, gc."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click
from pydantic import TypeAdapter, ValidationError

from model_delivery.base import BadInput, Finding, Permanent, default_home, plainly
from model_delivery.cli.printing import PATH, Answer, answers, progress_lines
from model_delivery.models.sources import SOURCES, Model
from model_delivery.models.sources.spec import Permission, repo_fault

FORM = f"write SOURCE:REPO[@REVISION], as {', '.join(f'{name}:{room.example}' for name, room in SOURCES.items())}"
MODEL: TypeAdapter[Model] = TypeAdapter(Model)


@click.command()
@click.argument("model", metavar="SOURCE:REPO[@REV]")
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--token-env", metavar="NAME", help="The environment variable that holds the hub's token.")
@click.option("--include", multiple=True, metavar="PATTERN", help="Files to fetch; default: what an engine needs.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Files to leave out.")
@click.option("--allow", multiple=True, type=click.Choice(get_args(Permission)), help="Take files that run code.")
@click.option(
    "--fallback",
    multiple=True,
    metavar="SOURCE:REPO[@REV]",
    help="Where a file is taken from when the first source cannot give it.",
)
@click.option("--pin", multiple=True, metavar="FILE=SHA256", help="The sum that a file must have, whoever gives it.")
@answers
def fetch(model: str, folder: Path, **more: Any) -> Answer:
    """Fetch a model into DIR, every file verified, the manifest last. What is there is
    adopted; a fetch that was cut goes on.
    """
    from model_delivery.verbs import models

    wanted = _model(model, more)
    with progress_lines():
        done = models.fetch(wanted, folder.absolute())
    moved = f"{done.fetched_bytes:,} bytes moved in {done.seconds:.1f} s"
    lines = [f"{done.path}: {done.files} files, {done.bytes:,} bytes, verified; {moved}"]
    lines += [f"  {count} from {origin}" for origin, count in sorted(done.origins.items())]
    return Answer(done.model_dump(mode="json"), lines)


@click.command()
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--deep", is_flag=True, help="Read every byte; else names and sizes are compared.")
@answers
def verify(folder: Path, deep: bool) -> Answer:
    """Does DIR hold what its manifest says? Offline, from the manifest alone."""
    from model_delivery.verbs import models

    with progress_lines():
        manifest, faults = models.verified(folder.absolute(), deep=deep)
    value = {"folder": str(folder), "deep": deep, "findings": [f.to_json() for f in faults]}
    if faults or manifest is None:
        return Answer(value, trouble=Permanent(*faults) if faults else None)
    size = sum(entry.size for entry in manifest.files)
    checked = "every byte" if deep else "names and sizes; --deep reads every byte"
    whole = f"{folder}: {len(manifest.files)} files, {size:,} bytes, whole ({checked})"
    return Answer(value, [whole, f"  {manifest.source} {manifest.key} at {manifest.commit}"])


@click.command()
@click.option("--dry-run", is_flag=True, help="Say what would go.")
@click.option("--context", help="Of the kubeconfig: on the claims of a cluster.")
@click.option("-n", "--namespace", help="On the claims of this namespace, by Jobs.")
@answers
def gc(dry_run: bool, context: str | None, namespace: str | None) -> Answer:
    """Remove models that no release needs any more, and what dead fetches left. What a
    rollback could want stays.

    On this host, or with --namespace on the claims of its deliveries.
    """
    verb, end = ("would remove", "would be freed") if dry_run else ("removed", "freed")
    with progress_lines():
        if context or namespace:
            from model_delivery.verbs import claims

            items = claims.collect(context, namespace or "default", dry_run=dry_run)
        else:
            from model_delivery.verbs import models

            items = models.collect(default_home(), dry_run=dry_run)
    lines = [f"{verb} {item.path}: {item.bytes:,} bytes, {item.why}" for item in items]
    lines.append(f"{sum(item.bytes for item in items):,} bytes {end}" if items else "nothing to remove")
    return Answer(items, lines)


def _model(text: str, more: dict[str, Any]) -> Model:
    given = _address(text) | {key: list(more[key]) for key in ("include", "exclude", "allow") if more[key]}
    if more["token_env"]:
        given["token"] = {"env": more["token_env"]}
    if more["fallback"]:
        given["fallback"] = [_address(other) for other in more["fallback"]]
    if more["pin"]:
        given["pins"] = dict(pin.partition("=")[::2] for pin in more["pin"])
    try:
        return MODEL.validate_python(given)
    except ValidationError as error:
        problems = ((".".join(map(str, e["loc"][1:])), plainly(e)) for e in error.errors())
        raise BadInput(
            *(Finding("cli.wrong-model", f"{at}: {msg}", f"in {text}", FORM) for at, msg in problems)
        ) from None


def _address(text: str) -> dict[str, Any]:
    source, _, address = text.partition(":")
    if source not in SOURCES or not address:
        what, why = f"{text!r} names no model", f"known sources: {', '.join(SOURCES)}"
        raise BadInput(Finding("cli.no-model", what, why, FORM))
    given = {"source": source} | SOURCES[source].from_address(address)
    if why := repo_fault(str(given.get("repo", ""))):
        fix = f"{FORM}; a token's variable is named with --token-env"
        raise BadInput(Finding("cli.wrong-model", f"the address of {source} {why}", "", fix))
    return given


VERBS = (fetch, verify, gc)
