"""Verbs about a Prefect server: register, automations."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from model_delivery.base import BadInput, Finding
from model_delivery.cli.printing import PATH, Answer, answers, show
from model_delivery.spec import load_spec
from model_delivery.values.plain_secrets import plain_secrets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model_delivery.flows.registration import Registration

GROUP = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@click.command()
@click.argument("files", type=PATH, nargs=-1, required=True)
@click.option("--pool", default="local", show_default=True, help="The work pool whose workers run them.")
@click.option("--tag", "tags", multiple=True, help="A tag of the deployment. Repeatable.")
@click.option("--description", default="", help="What stands on the deployment's page.")
@click.option("--group", default="", help="A name for what is registered together; see --remove.")
@click.option("--remove", is_flag=True, help="Remove the group's deployments that no file is given for any more.")
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@answers
def register(files: tuple[Path, ...], *, group: str, remove: bool, dry_run: bool, **how: str) -> Answer:
    """Make, or bring up to date, the deployment deliver/NAME of the spec in each of
    FILES. What changes is shown first.
    """
    if (group or remove) and not GROUP.fullmatch(group):
        why = f"{group!r:.80} is not of letters, digits and . _ -" if group else "only what belongs to one is removed"
        raise BadInput(Finding("prefect.group", "--group needs a name", why, "use --group NAME, with --remove too"))
    if next(plain_secrets([*how["tags"], how["description"]]), None):
        what, why = "a tag or the description holds what looks like a secret", "everybody sees them on Prefect's pages"
        raise BadInput(Finding("prefect.secret", what, why, "leave it out; where it is in use, make it void"))
    specs = [load_spec(file) for file in files]
    names = [spec.name for spec in specs]
    if double := sorted({name for name in names if names.count(name) > 1}):
        what, why = f"{', '.join(double)} stands in several files", "each service has one deployment"
        raise BadInput(Finding("prefect.double", what, why, "name each service once"))
    from model_delivery.flows import registration as do

    found = do.propose(specs, do.Wanted(how["pool"], tuple(how["tags"]), how["description"], group))
    gone = found.gone if remove else ()
    show(_lines(found, gone), err=True)
    ids = {} if dry_run else {proposal.name: do.register(proposal) for proposal in found.proposals}
    for name in () if dry_run else gone:
        do.remove(name)
    value = [
        {
            "deployment": f"deliver/{p.name}",
            "id": ids.get(p.name),
            "pool": how["pool"],
            "action": p.action,
            "differs": p.differs or (),
            "paused": p.paused,
        }
        for p in found.proposals
    ]
    lines = [] if dry_run else [f"registered deliver/{p.name} in pool {how['pool']}" for p in found.proposals]
    lines += [] if dry_run else [f"run it: prefect deployment run 'deliver/{p.name}'" for p in found.proposals]
    return Answer({"deployments": value, "removed": gone, "older": found.older, "dry_run": dry_run}, lines)


def _lines(found: Registration, gone: tuple[str, ...]) -> Iterator[str]:
    for proposal in found.proposals:
        yield f"deliver/{proposal.name}: {proposal.action}"
        yield from (f"  {line}" for line in proposal.differs or ())
        if proposal.paused:
            yield "  it stays paused, as somebody set it in Prefect: resume it there"
    yield from (f"deliver/{name}: removed, no file is given for it (its service stays as it is)" for name in gone)
    if found.older:
        yield f"made by an older version, and refused when run: {', '.join(found.older)}"
        yield "run `deliver register FILE` (or `prefect deploy --all`) again for each"


@click.command()
@click.option("--notify", default="", metavar="TYPE/NAME", help="The notification block that is told of refusals.")
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@answers
def automations(notify: str, *, dry_run: bool) -> Answer:
    """Put the automations of manifests/prefect/automations.yaml on the Prefect server, or
    bring them up to date.
    """
    from model_delivery.flows.automations import install

    done = install(notify, dry_run=dry_run)
    return Answer(done, [f"{one.name}: {one.action}" for one in done])


VERBS = (register, automations)
