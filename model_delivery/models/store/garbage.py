"""Model folders that no release knows any more, and what dead fetches left."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from model_delivery.models.manifest import MODELS, read_manifest
from model_delivery.models.store.commit import lock_of
from model_delivery.models.store.lock import held

DOOMED = ".doomed"


@dataclass(frozen=True)
class Garbage:
    """A folder or file that may go; ``bytes`` is what its removal frees."""

    path: Path
    bytes: int
    why: str


def find(roots: Iterable[Path], wanted: Callable[[], set[Path]]) -> tuple[Garbage, ...]:
    """What lies in the stores under ``roots`` and is neither in ``wanted`` nor being
    fetched now.
    """
    kept = wanted()
    return tuple(item for root in sorted(set(roots)) for item in _in_store(root / MODELS, kept))


def remove(garbage: Iterable[Garbage], wanted: Callable[[], set[Path]]) -> tuple[Garbage, ...]:
    """Remove it, and say what went. A folder that somebody has come to want meanwhile, or
    fetches now, stays.
    """
    return tuple(item for item in garbage if _removed(item.path, wanted))


def _removed(path: Path, wanted: Callable[[], set[Path]]) -> bool:
    if held(lock_of(path)):
        return False
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return True
    doomed = path.with_name(f".{path.name}{DOOMED}") if not path.name.endswith(DOOMED) else path
    path.rename(doomed)
    if path in wanted():
        doomed.rename(path)
        return False
    shutil.rmtree(doomed)
    return True


def _in_store(models: Path, kept: set[Path]) -> Iterator[Garbage]:
    for path in sorted(models.glob("*/*/*")):
        if not path.name.startswith("."):
            if path.is_dir() and path not in kept and not held(lock_of(path)):
                whole = read_manifest(path) is not None
                yield Garbage(path, _size(path), "no release needs it" if whole else "begun and never finished")
        elif path.name.endswith(DOOMED) or not held(_lock_beside(path)):
            yield Garbage(path, _size(path), "left by a run that has ended")


def _lock_beside(path: Path) -> Path:
    """The lock of the folder that a hidden file or folder beside it belongs to:
    ``.COMMIT.scratch``, ``..COMMIT.lock.HOLDER``.
    """
    return lock_of(path.with_name(path.name.lstrip(".").partition(".")[0]))


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.lstat().st_blocks * 512 for file in files if not file.is_dir())
