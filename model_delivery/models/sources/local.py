"""A folder of this machine. Its commit is the digest of its file list."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from model_delivery.base.durable import replace_file
from model_delivery.base.findings import Finding, Refused
from model_delivery.base.home import default_home
from model_delivery.base.secrets import Secret
from model_delivery.models.sources import Local
from model_delivery.models.sources.listing import check_config, select
from model_delivery.models.sources.model import LocalModel
from model_delivery.models.store.layout import read_manifest
from model_delivery.models.store.safetensors import check_header
from model_delivery.models.store.verify import hash_file
from model_delivery.values.resources import digest
from model_delivery.values.snapshot import File, Snapshot

SKIPPED = (".git", ".cache", ".model-delivery")


class LocalFolder:
    """A sum that a manifest states is trusted until the bytes are copied; else a file is hashed once and known again by size, times and inode."""

    def __init__(self, model: LocalModel) -> None:
        self.model, self.root = model, Path(model.path)
        self.name, self.key = f"local {model.path}", digest(model.path, 16)

    def resolve(self, token: Secret | None) -> Snapshot:
        """Refused when it is no whole model: no config.json, no weights, a cut safetensors file, other files than ``manifest`` names.

        Symbolic links are followed only inside the folder.
        """
        if not self.root.is_dir():
            raise Refused(
                Finding(
                    "todo",
                    f"model.path {self.root} is no folder",
                    "it does not exist, or is a file",
                    "correct model.path",
                )
            )
        listed = [File(path=name, size=path.stat().st_size) for name, path in self._files()]
        chosen = select(listed, self.model.include, self.model.exclude, self.model.allow)
        check_config((self.root / "config.json").read_bytes(), self.model.allow)
        faults = [
            fault
            for f in chosen
            if f.path.endswith(".safetensors") and (fault := check_header(self.root / f.path, f.path))
        ]
        if faults:
            raise Refused(*faults)
        files = self._summed(chosen)
        commit = digest([[f.path, f.size, f.sha256] for f in files], 40)
        return Snapshot(source="local", key=self.key, commit=commit, files=files)

    def locate(self, commit: str, file: File, scratch: object, token: Secret | None) -> Local:
        return Local(self.root / file.path)

    def _files(self) -> Iterator[tuple[str, Path]]:
        root = self.root.resolve()
        for path in sorted(self.root.rglob("*")):
            if not path.is_file() or any(part.startswith(SKIPPED) for part in path.relative_to(self.root).parts):
                continue
            if not path.resolve().is_relative_to(root):
                raise Refused(
                    Finding(
                        "todo",
                        f"{path} leads out of the model's folder",
                        "it is a symbolic link to elsewhere",
                        "replace it by the file",
                    )
                )
            yield path.relative_to(self.root).as_posix(), path

    def _summed(self, files: tuple[File, ...]) -> tuple[File, ...]:
        """What is hashed is remembered in the state folder, once there is one: a plan makes none."""
        stated = self._stated(files)
        memory = default_home() / "hashes" / f"{self.key}.json"
        known = _remembered(memory)
        hashed = {
            f.path: [_identity(self.root / f.path), _sum(self.root / f.path, known.get(f.path))]
            for f in files
            if f.path not in stated
        }
        if hashed and hashed != known and default_home().is_dir():
            replace_file(memory, json.dumps(hashed))
        return tuple(f.model_copy(update={"sha256": stated.get(f.path) or hashed[f.path][1]}) for f in files)

    def _stated(self, files: tuple[File, ...]) -> dict[str, str]:
        """The sums of ``model.manifest`` (lines as sha256sum writes them), else those of a manifest of ours in the folder."""
        if self.model.manifest is None:
            ours = read_manifest(self.root)
            sizes = {f.path: f.size for f in files}
            return {e.path: e.sha256 for e in ours.files if sizes.get(e.path) == e.size} if ours else {}
        lines = [line.partition(" ") for line in self.model.manifest.splitlines() if line.strip()]
        stated = {name.lstrip(" *"): total.lower() for total, _, name in lines}
        missing = sorted(set(stated) - {f.path for f in files})
        if missing:
            why = f"missing: {', '.join(missing[:5])}"
            raise Refused(
                Finding("todo", "the folder does not hold what model.manifest says", why, "copy the model again")
            )
        return stated


def _identity(path: Path) -> list[int]:
    at = path.stat()
    return [at.st_size, at.st_mtime_ns, at.st_ctime_ns, at.st_ino]


def _sum(path: Path, known: object) -> str:
    match known:
        case [identity, str(total)] if identity == _identity(path):
            return total
    return hash_file(path)


def _remembered(memory: Path) -> dict[str, object]:
    with suppress(OSError, ValueError):
        told = json.loads(memory.read_text(encoding="utf-8"))
        return told if isinstance(told, dict) else {}
    return {}
