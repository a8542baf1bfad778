"""Garbage collection as a step: where a claim is, which only its pods see."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import SerializerFunctionWrapHandler, model_serializer

from model_delivery.base import Part
from model_delivery.models.store.garbage import NO_HOME, Collector
from model_delivery.steps import Step
from model_delivery.targets.kubernetes.caches import FOLDER

KEY = re.compile(r"[0-9a-f]{16}")


class GcInput(Part):
    """``wanted`` and ``caches``: the folders that stay, as seen from the store's
    ``root``; nobody may come to want another while it runs.
    """

    root: str
    wanted: tuple[str, ...]
    dry_run: bool
    caches: tuple[str, ...] = ()

    @model_serializer(mode="wrap")
    def _plainly(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What keeps no cache is read by an older version's image too."""
        made: dict[str, Any] = dump(self)
        return {name: value for name, value in made.items() if name != "caches" or value}


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
    models = (Item(path=str(g.path.relative_to(root)), bytes=g.bytes, why=g.why) for g in found)
    return Collected(items=(*models, *_caches(root, given)))


def _caches(root: Path, given: GcInput) -> Iterator[Item]:
    """What engines compiled, of releases that nobody knows any more; through no link."""
    there = [path for path in sorted((root / FOLDER).glob("*/*")) if KEY.fullmatch(path.name)]
    for path in there:
        name, linked = str(path.relative_to(root)), any(p.is_symlink() for p in (path, path.parent, path.parent.parent))
        if name in given.caches or linked or not path.is_dir():
            continue
        size = sum(file.lstat().st_blocks * 512 for file in path.rglob("*"))
        if not given.dry_run:
            with suppress(OSError):
                shutil.rmtree(path)
        if given.dry_run or not path.exists():
            yield Item(path=name, bytes=size, why="compiled for releases that are gone")


STEP = Step("gc", GcInput, Collected, run)
