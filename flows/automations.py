"""The automations that come with Model Delivery, put on the Prefect server once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.events.schemas.automations import Automation, AutomationCore
from prefect.exceptions import ObjectNotFound

from model_delivery.base import Finding, Refused
from model_delivery.base.home import packaged
from model_delivery.flows.server import asked

FILE = "prefect/automations.yaml"
BLOCK, NOTIFY = "BLOCK", "notify"
NO_BLOCK = "left out: it needs --notify TYPE/NAME, a notification block of the server"
NO_DEPLOYMENT = "left out: there is no deployment {}; `prefect deploy --all` makes it"


@dataclass(frozen=True)
class Installed:
    """What became of one automation: new, changed, unchanged, or why it was left out."""

    name: str
    action: str


def install(notify: str = "", *, dry_run: bool = False, patience: float = 45.0) -> tuple[Installed, ...]:
    """Put each automation of manifests/prefect/automations.yaml there, or bring it up to
    date, known by its name; one that a person disabled stays so.

    ``notify``: a notification block as TYPE/NAME. Refused where there is none, or no
    server.
    """

    def put(client: SyncPrefectClient) -> tuple[Installed, ...]:
        block = _block(client, notify)
        return tuple(_installed(client, one, block, dry_run=dry_run) for one in _shipped())

    return asked(put, patience)


def _shipped() -> Iterator[dict[str, Any]]:
    yield from yaml.safe_load((packaged("manifests") / FILE).read_text(encoding="utf-8"))


def _installed(client: SyncPrefectClient, shipped: dict[str, Any], block: str | None, *, dry_run: bool) -> Installed:
    name = shipped["name"]
    for action in shipped["actions"]:
        if action.get("block_document_id") == BLOCK:
            if block is None:
                return Installed(name, NO_BLOCK)
            action["block_document_id"] = block
        if called := action.get("deployment_id"):
            if (found := _deployment(client, called)) is None:
                return Installed(name, NO_DEPLOYMENT.format(called))
            action["deployment_id"] = found
    wanted = AutomationCore.model_validate(shipped)
    there = client.read_automations_by_name(name)
    if not there:
        if not dry_run:
            client.create_automation(wanted)
        return Installed(name, "new")
    first = there[0]
    wanted = wanted.model_copy(update={"enabled": first.enabled})
    if _same(first, wanted):
        return Installed(name, "unchanged")
    if not dry_run:
        client.update_automation(first.id, wanted)
    return Installed(name, "changed")


def _same(there: Automation, wanted: AutomationCore) -> bool:
    """But for the ids that the server gives."""

    def shown(one: AutomationCore) -> dict[str, Any]:
        content = one.model_dump(include={"name", "description", "enabled", "trigger", "actions"})
        content["trigger"].pop("id", None)
        return content

    return shown(there) == shown(wanted)


def _block(client: SyncPrefectClient, notify: str) -> str | None:
    if not notify:
        return None
    slug, _, name = notify.partition("/")
    try:
        found = client.read_block_document_by_name(name, slug, include_secrets=False)
    except ObjectNotFound:
        what, fix = f"the server has no notification block {notify}", "see `prefect block ls`; name it as TYPE/NAME"
        raise Refused(Finding("prefect.no-block", what, "there is none of that type and name", fix)) from None
    if found.block_schema is None or NOTIFY not in found.block_schema.capabilities:
        what, fix = f"the block {notify} notifies nobody", "name one of a notification type: see `prefect block ls`"
        raise Refused(Finding("prefect.no-notification", what, f"a {slug} cannot {NOTIFY}", fix))
    return str(found.id)


def _deployment(client: SyncPrefectClient, called: str) -> str | None:
    try:
        return str(client.read_deployment_by_name(called).id)
    except ObjectNotFound:
        return None
