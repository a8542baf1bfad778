"""A folder of this machine. Its commit is the digest of its file list."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Literal

from model_delivery.base import Finding, Refused, Text, default_home, proven, read_file, replace_file
from model_delivery.models.manifest import read_manifest
from model_delivery.models.shards import faults_in
from model_delivery.models.sources.spec import Local, ModelSpec
from model_delivery.models.verify import hash_file
from model_delivery.values import File, Snapshot

SKIPPED = (".git", ".cache", ".model-delivery")


class LocalModel(ModelSpec):
    """A folder on the host; ``manifest``: the text of a list of sha256 sums."""

    source: Literal["local"]
    path: Text
    manifest: str | None = None

    files: ClassVar[tuple[str, ...]] = ("path",)
    texts: ClassVar[tuple[str, ...]] = ("manifest",)
    in_cluster: ClassVar[bool] = False
    example: ClassVar[str] = "FOLDER"

    @classmethod
    def from_address(cls, text: str) -> dict[str, Any]:
        return {"path": str(Path(text).expanduser().absolute())}

    @property
    def repo(self) -> str:
        return self.path

    @property
    def revision(self) -> str:
        """A folder has none."""
        return "unknown"

    @property
    def token(self) -> None:
        """A folder has none."""

    @property
    def root(self) -> Path:
        return Path(self.path)

    def resolve(self) -> Snapshot:
        """Refused when it is no whole model: no config.json, no weights, a cut
        safetensors file, other files than ``manifest`` names.

        Symbolic links are followed only inside the folder. A sum that a manifest states
        is trusted until the bytes are copied; else a file is hashed once and known again
        by size, times and inode.
        """
        if not self.root.is_dir():
            what, why = f"the model's path {self.root} is no folder", "it does not exist, or is a file"
            raise Refused(Finding("source.no-folder", what, why, "correct the path"))
        try:
            files = self.chosen(self._files(), "", self.root)
            names = [file.path for file in files]
            if faults := faults_in(self.root, names, self.allow):
                raise Refused(*faults)
            return self.snapshot(self._summed(files))
        except OSError as error:
            what, why = f"{error.filename or self.root} cannot be read", error.strerror or type(error).__name__
            fix = "give this user the right to read it, or copy the model again"
            raise Refused(Finding("source.not-readable", what, why, fix)) from error

    def read(self, commit: str, file: File, scratch: Path) -> bytes:
        return (self.root / file.path).read_bytes()

    def locate(self, commit: str, file: File, scratch: Path) -> Local:
        return Local(self.root / file.path)

    def _files(self) -> list[File]:
        """Refused where a wanted one is no file, or a link that leads out of the
        folder.
        """
        found = {
            path.relative_to(self.root).as_posix(): path
            for path in sorted(self.root.rglob("*"))
            if path.is_symlink() or not path.is_dir()
        }
        ours = [name for name in found if not any(part.startswith(SKIPPED) for part in name.split("/"))]
        odd = {name: why for name in self.wanted(ours) if (why := self._misfit(found[name]))}
        if odd:
            fix = "replace it by the file, or exclude it in model.exclude"
            raise Refused(*(Finding("source.link", f"{found[name]} {why}", "", fix) for name, why in odd.items()))
        return [File(path=name, size=found[name].stat().st_size) for name in ours if found[name].is_file()]

    def _misfit(self, path: Path) -> str:
        """The snapshots of Hugging Face's cache are links to its ``blobs``."""
        if path.is_symlink() and path.is_dir():
            return "is a link to a folder"
        if not path.is_file():
            return "leads nowhere" if path.is_symlink() else "is no file"
        root = self.root.resolve()
        cache = (root.parents[1] / "blobs",) if root.parent.name == "snapshots" else ()
        inside = any(path.resolve().is_relative_to(folder) for folder in (root, *cache))
        return "" if inside else "leads out of the model's folder: it is a symbolic link to elsewhere"

    def _summed(self, files: tuple[File, ...]) -> tuple[File, ...]:
        """What is hashed is remembered in the state folder, once there is one: a plan
        makes none.
        """
        stated = self._stated(files)
        memory = proven(default_home() / "hashes", default_home()) / f"{self.key}.json"
        known = _remembered(memory)
        hashed = {f.path: _hashed(self.root / f.path, known.get(f.path)) for f in files if f.path not in stated}
        if hashed and hashed != known and default_home().is_dir():
            replace_file(memory, json.dumps(hashed))
        return tuple(f.model_copy(update={"sha256": stated.get(f.path) or hashed[f.path][1]}) for f in files)

    def _stated(self, files: tuple[File, ...]) -> dict[str, str]:
        """The sums of ``model.manifest`` (lines as sha256sum writes them), else those of
        a manifest of ours in the folder.
        """
        sizes = {f.path: f.size for f in files}
        if self.manifest is None:
            ours = read_manifest(self.root)
            return {e.path: e.sha256 for e in ours.files if sizes.get(e.path) == e.size} if ours else {}
        lines = [line.partition(" ") for line in self.manifest.splitlines() if line.strip()]
        stated = {name.lstrip(" *"): total.lower() for total, _, name in lines}
        if missing := sorted(stated.keys() - sizes):
            what, why = "the folder does not hold what model.manifest says", f"missing: {', '.join(missing[:5])}"
            raise Refused(Finding("source.no-file", what, why, "copy the model again"))
        return stated


def _hashed(path: Path, known: object) -> list[Any]:
    """What is remembered of a file: what it was known by, and its sum."""
    at = path.stat()
    identity = [at.st_size, at.st_mtime_ns, at.st_ctime_ns, at.st_ino]
    match known:
        case [before, str(total)] if before == identity:
            return [identity, total]
    return [identity, hash_file(path)]


def _remembered(memory: Path) -> dict[str, object]:
    with suppress(OSError, ValueError, RecursionError):
        known = json.loads(read_file(memory))
        return known if isinstance(known, dict) else {}
    return {}
