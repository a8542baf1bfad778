"""Garbage collection as a step: where a claim is, which only its pods see."""

from __future__ import annotations

from pathlib import Path

from model_delivery.base import Part
from model_delivery.models.store.garbage import NO_HOME, Collector
from model_delivery.steps import Step


class GcInput(Part):
    """``wanted``: the folders that stay, as seen from the store's ``root``; nobody may
    come to want another while it runs.
    """

    root: str
    wanted: tuple[str, ...]
    dry_run: bool


class Item(Part):
    """A folder that went, or in a dry run would; ``path`` as seen from the store's
    root.
    """

    path: str
    bytes: int
    why: str


class Collected(Part):
    items: tuple[Item, ...]


def run(given: GcInput) -> Collected:
    root = Path(given.root)
    collector = Collector(root, lambda: {root / name for name in given.wanted}, NO_HOME)
    found = collector.collect((), dry_run=given.dry_run)
    return Collected(items=tuple(Item(path=str(g.path.relative_to(root)), bytes=g.bytes, why=g.why) for g in found))


STEP = Step("gc", GcInput, Collected, run)
