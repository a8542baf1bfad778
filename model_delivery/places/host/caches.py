"""What an engine compiled at its start, kept for its next one: a folder in the state
folder for all that the compiled code depends on, private to its delivery.

It may save a start's time, and never decides about one: what cannot be used is left out,
and a start that fails with what an earlier one left is tried once without it.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from model_delivery.base import Finding, Permanent, Progress, private_folder, proven, read_file, report
from model_delivery.places.host import gpus
from model_delivery.places.host.handler import Bound, Handler, Process, StateFolder
from model_delivery.places.host.processes import ProcessFolder
from model_delivery.targets.process import ENGINE
from model_delivery.values import RELEASE, Engine, digest

FOLDER = "cache"
READY = "was-ready"
RELEASES = ".releases"
ROOM = 1 << 20  # bytes that must find room
CODE = {
    "name",
    "folder",
    "command",
    "environment",
    "variables",
    "sleep",
}  # of an engine, what its compiled code depends on
CPU = ("model name", "flags", "CPU part", "Features")  # lines of /proc/cpuinfo


class Books(Handler):
    """A release's own object: with the last one that used a cache, the cache goes."""

    def stop(self, grace: float | None) -> None:
        sweep(self.host, self.resource.delivery, self.resource.ref.name)


def kept(process: Process, engine: Engine, bound: Bound) -> tuple[dict[str, str], Bound]:
    """The variables that lead the engine to its cache, and what it is bound to, with the
    cache. Says why where there is none to be used.
    """
    suspect = suspected(process.folder)
    (process.folder.path / READY).unlink(missing_ok=True)
    if not engine.caches:
        return {}, bound
    cache = process.host.folder(process.resource.delivery) / FOLDER / _key(process.spec, engine, bound)
    try:
        if suspect:
            _put_aside(cache, process)
        old = _made(cache, engine.caches, process)
    except (OSError, Permanent) as error:
        why = error.findings[0].what if isinstance(error, Permanent) else f"{error.strerror or error}"
        fix = "see who owns the folder and whether it has room; the next start tries it again"
        _tell(Finding("engine.cache-unusable", f"the engine starts without its cache {cache}", why, fix))
        return {}, bound
    environ = {name: str(cache / folder) for name, folder in engine.caches.items()}
    return environ, {**bound, "cache": {"path": str(cache), "kept": old}}


def suspected(folder: ProcessFolder) -> bool:
    """Did its last process end before it was ever ready, with a cache of an earlier
    start? Not in a race: there the loader is doubted.
    """
    told = bool(_bound(folder).get("kept")) and not folder.binding.get("lap")
    return told and not folder.running and not (folder.path / READY).exists()


def noted(folder: ProcessFolder, *, healthy: bool) -> bool:
    """As ``suspected``; that an engine with a cache was ready is remembered."""
    if healthy and _bound(folder):
        with suppress(OSError):
            (folder.path / READY).touch()
    return suspected(folder)


def sweep(host: StateFolder, delivery: str, gone: str) -> None:
    """Remove each cache that no release which is known, but ``gone``, was started
    with.
    """
    root, known = host.folder(delivery) / FOLDER, host.folder(delivery) / "objects" / RELEASE.name
    running = {p.path.name.removeprefix(f"{ENGINE}-") for p in host.processes(delivery, f"{ENGINE}-") if p.alive}
    used = ({path.stem for path in known.glob("*.json")} - {gone}) | running
    if root.is_dir() and not root.is_symlink():
        for cache in root.iterdir():
            if cache.name.startswith(".") or not used & _releases(cache):
                _remove(cache)


def _releases(cache: Path) -> set[str]:
    with suppress(OSError):
        return {path.name for path in (cache / RELEASES).iterdir()}
    return set()


def _remove(path: Path) -> None:
    """A link itself goes, and not what it leads to."""
    with suppress(OSError):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            shutil.rmtree(path)


def _put_aside(cache: Path, process: Process) -> None:
    """Not one that another engine runs with: then it is an OSError."""
    log = process.folder.binding.get("log", "")
    if str(cache) != _bound(process.folder).get("path"):
        return
    for other in process.host.processes(process.resource.delivery, f"{ENGINE}-"):
        if other.path != process.folder.path and other.running and _bound(other).get("path") == str(cache):
            raise OSError("the last start with it failed, and another engine runs with it")
    what, why = (
        "the engine is started once more, with an empty cache",
        f"with what an earlier start left, it ended: {log}",
    )
    _tell(Finding("engine.cache-dropped", what, why, "nothing is to be done where it becomes ready now"))
    if os.path.lexists(cache):
        doomed = proven(cache, process.host.home).with_name(f".{cache.name}-{uuid.uuid4().hex}")
        cache.rename(doomed)
        _remove(doomed)


def _made(cache: Path, folders: Mapping[str, str], process: Process) -> bool:
    """Make what is missing of it; did an earlier start leave anything there? OSError, or
    Permanent for a link, where it cannot be used.
    """
    paths = [cache.parent, cache, *(cache / folder for folder in (RELEASES, *folders.values()))]
    for path in paths:
        private_folder(proven(path, process.host.home))
        seen = path.lstat()
        if seen.st_uid != os.geteuid():  # what is compiled is run: nobody else may have written it
            raise PermissionError(None, f"{path} is user {seen.st_uid}'s")
        if stat.S_IMODE(seen.st_mode) & 0o077:
            path.chmod(0o700)
    (cache / RELEASES / process.resource.ref.name).touch()
    with tempfile.TemporaryFile(dir=cache, buffering=0) as probe:
        os.posix_fallocate(probe.fileno(), 0, ROOM)
    return any(any((cache / folder).iterdir()) for folder in folders.values())


def _key(spec: Bound, engine: Engine, bound: Bound) -> str:
    """By all that the compiled code may depend on, rather too much than too little."""
    asked = {name: spec[name] for name in ("model", "args", "env", "cpus", "gpus")}
    return digest([engine.model_dump(mode="json", include=CODE), asked, sorted(_chips(bound))], 16)


def _chips(bound: Bound) -> Iterator[str]:
    """The GPUs' names, else the CPU; nothing where they do not say."""
    with suppress(OSError, Permanent):
        if bound["gpus"]:
            yield from (gpu.name for gpu in gpus.read() if gpu.index in bound["gpus"])
            return
        lines_of = read_file(Path("/proc/cpuinfo")).decode(errors="replace").split("\n\n")[0].splitlines()
        yield from (line for line in lines_of if line.partition("\t")[0] in CPU)


def _bound(folder: ProcessFolder) -> dict[str, Any]:
    return dict(folder.binding.get("cache", {}))


def _tell(finding: Finding) -> None:
    report(Progress("cache", str(finding)))
