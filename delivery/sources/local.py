"""A folder of this machine. Its commit is the digest of its file list."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from delivery.findings import Finding, Refused
from delivery.progress import Progress, report
from delivery.resources import digest
from delivery.secrets import Secret
from delivery.sources import File, Local, Snapshot
from delivery.sources.listing import check_config, select
from delivery.spec import LocalModel
from delivery.store.safetensors import check_header

CHUNK = 1 << 20


class LocalFolder:
    """Files are hashed at every resolve; symbolic links are followed only inside the folder."""

    def __init__(self, model: LocalModel) -> None:
        self.model, self.root = model, Path(model.path)

    def resolve(self, token: Secret | None) -> Snapshot:
        """Refused when it is no whole model: no config.json, no weights, a cut safetensors file, a wrong sum of ``manifest``."""
        if not self.root.is_dir():
            raise Refused(Finding(f"model.path {self.root} is no folder", "it does not exist, or is a file", "correct model.path"))
        listed = [File(path=name, size=path.stat().st_size) for name, path in self._files()]
        chosen = select(listed, self.model.include, self.model.exclude, self.model.allow)
        check_config((self.root / "config.json").read_bytes(), self.model.allow)
        faults = [fault for f in chosen if f.path.endswith(".safetensors") and (fault := check_header(self.root / f.path, f.path))]
        if faults:
            raise Refused(*faults)
        files = tuple(f.model_copy(update={"sha256": hash_file(self.root / f.path)}) for f in chosen)
        self._check_sums(files)
        commit = digest([[f.path, f.size, f.sha256] for f in files], 40)
        return Snapshot(source="local", key=digest(str(self.root), 16), commit=commit, files=files)

    def locate(self, commit: str, file: File, token: Secret | None) -> Local:
        return Local(self.root / file.path)

    def _files(self) -> Iterator[tuple[str, Path]]:
        root = self.root.resolve()
        for path in sorted(self.root.rglob("*")):
            if not path.is_file() or any(
                part.startswith((".git", ".cache", ".model-delivery")) for part in path.relative_to(self.root).parts
            ):
                continue
            if not path.resolve().is_relative_to(root):
                raise Refused(
                    Finding(f"{path} leads out of the model's folder", "it is a symbolic link to elsewhere", "replace it by the file")
                )
            yield path.relative_to(self.root).as_posix(), path

    def _check_sums(self, files: tuple[File, ...]) -> None:
        if self.model.manifest is None:
            return
        wanted = {
            name.lstrip(" *"): total
            for total, _, name in (line.partition(" ") for line in self.model.manifest.splitlines() if line.strip())
        }
        wrong = [f.path for f in files if wanted.get(f.path, f.sha256) != f.sha256]
        missing = sorted(set(wanted) - {f.path for f in files})
        if wrong or missing:
            why = json.dumps({"differ": wrong, "missing": missing})
            raise Refused(Finding("the folder does not hold what model.manifest says", why, "copy the model again"))


def hash_file(path: Path) -> str:
    """The sha256 of a file, with progress for large ones."""
    sha, done, size = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            sha.update(chunk)
            done += len(chunk)
            if done % (CHUNK * 256) == 0:
                report(Progress("resolve", f"hashing {path.name}", done=done, total=size, unit="B"))
    return sha.hexdigest()
