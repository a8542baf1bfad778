"""Model folders that no release knows any more, and what dead fetches left.

Only what a fetch made: in a folder of a source of ours, by its manifest or its workspace.
A store that several homes use has a mark of each beside every folder: what another's mark
holds stays, and outside of one's own home only what one's own mark names is garbage.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from model_delivery.base import Progress, read_file, report
from model_delivery.models.manifest import MANIFEST, MODELS, WORK, read_manifest
from model_delivery.models.sources import SOURCES
from model_delivery.models.store.commit import mark_of
from model_delivery.models.store.workspace import WRITTEN, begun, held
from model_delivery.models.verify import all_in, names_in, verify
from model_delivery.values import digest

DOOMED = ".doomed"
FOLDER = re.compile(rf"[0-9a-f]{{40,64}}|\.[0-9a-f]{{40,64}}{DOOMED}")
NO_HOME = "elsewhere"


def user_of(home: Path) -> str:
    """The name by which a home marks what it uses; a copy of a home has another.

    A Job in a cluster has no home: what it uses, Jobs alone collect.
    """
    if not home.is_dir():
        return NO_HOME
    own = home / "store-user"
    with suppress(FileExistsError), own.open("x") as file:
        file.write(uuid.uuid4().hex)
    return digest([read_file(own).decode(), own.stat().st_ino], 16)


@dataclass(frozen=True)
class Garbage:
    """A folder that may go; ``bytes`` is what its removal frees."""

    path: Path
    bytes: int
    why: str


@dataclass(frozen=True)
class Collector:
    """For one ``home``; ``wanted`` are the folders that its releases need, as of now.
    ``user``: by whose mark, where it is not the home's own.
    """

    home: Path
    wanted: Callable[[], set[Path]]
    user: str = ""

    @property
    def _user(self) -> str:
        return self.user or user_of(self.home)

    def collect(self, roots: Iterable[Path], *, dry_run: bool) -> tuple[Garbage, ...]:
        """What lies in the stores under ``roots`` and the home, is not wanted, and is not
        being fetched now. It is removed, but in a dry run; a folder that somebody has
        come to want meanwhile stays.
        """
        found = [path for root in sorted({self.home, *roots}) for path in _folders(root / MODELS)]
        kept = self.wanted()
        unwanted = [path for path in found if _shown(path) not in kept]
        garbage = tuple(_garbage(path) for path in unwanted if self._may_go(path, _shown(path), _tell))
        if dry_run:
            return garbage
        gone = tuple(item for item in garbage if self._removed(item.path))
        for path in unwanted:
            if not held(path):
                with suppress(OSError):
                    mark_of(_shown(path), self._user).unlink(missing_ok=True)
        return gone

    def _removed(self, path: Path) -> bool:
        shown = _shown(path)
        doomed = path.with_name(f".{shown.name}{DOOMED}")
        with suppress(OSError):  # another's gc was faster, or it belongs to another user
            if path != doomed:
                path.rename(doomed)
                stays = True
                try:
                    stays = path in self.wanted() or not self._may_go(doomed, path)
                finally:
                    if stays:
                        doomed.rename(path)
                if stays:
                    return False
            shutil.rmtree(doomed)
            return True
        return False

    def _may_go(self, path: Path, shown: Path, tell: Callable[[Path, list[str]], None] | None = None) -> bool:
        """``shown``: its name while it is a model's folder. ``tell`` hears what alone
        keeps it.
        """
        mine = mark_of(shown, self._user)
        marks = set(shown.parent.glob(mark_of(shown, "*").name))
        alone = not marks - {mine} and (bool(marks) or path.is_relative_to(self.home))
        if not alone or held(path):
            return False
        others = _others(path)
        if others and tell:
            tell(path, others)
        return not others


def _folders(models: Path) -> Iterator[Path]:
    """Those of commits, through no link."""
    for source in () if models.is_symlink() else SOURCES:
        for key in _below(models / source):
            yield from (path for path in _below(key) if FOLDER.fullmatch(path.name))


def _below(folder: Path) -> list[Path]:
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))


def _shown(path: Path) -> Path:
    return path.with_name(path.name.removeprefix(".").removesuffix(DOOMED))


def _others(path: Path) -> list[str]:
    """What there was not written by a fetch, or changed since: it is somebody's."""
    inside = sorted(name for name in all_in(path) if name.startswith(WORK) and name != MANIFEST)
    return [*_changed(path), *(f"{name} is no fetch's" for name in inside if not WRITTEN.fullmatch(name))]


def _changed(path: Path) -> list[str]:
    if read_manifest(path) is not None:
        return [fault.what for fault in verify(path) if fault.code != "store.file-missing"]
    if path.name.endswith(DOOMED):
        return []
    if path / WORK not in _below(path):
        return ["no fetch made it"]
    listed = begun(path)
    names = [name for name in names_in(path) if listed.get(name) != (path / name).lstat().st_size]
    return [f"{name} is no fetch's, or was changed" for name in names]


def _tell(path: Path, others: list[str]) -> None:
    shown = "; ".join(others[:5]) + (" …" if len(others) > 5 else "")
    report(Progress("gc", f"{path} stays, though no release needs it: {shown}"))


def _garbage(path: Path) -> Garbage:
    why = "no release needs it" if read_manifest(path) else "begun and never finished"
    files = (file for file in path.rglob("*") if not file.is_dir() or file.is_symlink())
    size = sum(file.lstat().st_blocks * 512 for file in files)
    return Garbage(path, size, "left by a run that has ended" if path.name.endswith(DOOMED) else why)
