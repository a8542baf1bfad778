"""Verify as a step: what lies in a folder that was filled by hand is compared with what its source lists; only then it gets a manifest."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from model_delivery.base.findings import Finding, Permanent
from model_delivery.base.progress import Progress, report
from model_delivery.models.sources.listing import check_config, is_weights
from model_delivery.models.store.layout import MANIFEST, Entry, read_manifest, write_manifest
from model_delivery.models.store.verify import hash_file, hash_git
from model_delivery.steps import Step
from model_delivery.values.snapshot import File, Snapshot

MADE_BY_HAND = "by hand"


class VerifyInput(BaseModel):
    """``folder`` holds what ``snapshot`` lists; ``allow``: as ``model.allow`` of a spec."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    snapshot: Snapshot
    folder: str
    allow: tuple[str, ...] = ()


class Verified(BaseModel):
    """``others``: files there that are not the model's, a clone's own ones left out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: int
    bytes: int
    others: tuple[str, ...]


def run(given: VerifyInput) -> Verified:
    """Read every byte. Permanent where a file is missing or another one, where more weights lie there, or the manifest cannot be written."""
    folder, snapshot = Path(given.folder), given.snapshot
    others = _others(folder, snapshot)
    faults = [
        Finding(
            "todo", f"{name} is not the model's", "an engine that takes every weights file would load it", "remove it"
        )
        for name in others
        if is_weights(name)
    ]
    entries: list[Entry] = []
    for file in snapshot.files:
        report(Progress("verify", file.path, done=sum(entry.size for entry in entries), total=snapshot.size, unit="B"))
        entry = _entry(folder / file.path, file)
        entries += [entry] if isinstance(entry, Entry) else []
        faults += [entry] if isinstance(entry, Finding) else []
    if faults:
        raise Permanent(*faults)
    check_config((folder / "config.json").read_bytes(), given.allow)
    manifest = read_manifest(folder)
    if manifest is None or list(manifest.files) != sorted(entries, key=lambda one: one.path):
        try:
            write_manifest(folder, snapshot, entries)
        except OSError as error:
            fix = "let the pod of serving.pod.security_context write there (its user owns the files, or fsGroup), then `deliver adopt` again"
            raise Permanent(
                Finding("todo", f"{folder / MANIFEST} cannot be written", error.strerror or str(error), fix)
            ) from None
    return Verified(files=len(entries), bytes=snapshot.size, others=others)


def _others(folder: Path, snapshot: Snapshot) -> tuple[str, ...]:
    listed = {file.path for file in snapshot.files} | {MANIFEST}
    there = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() or path.is_symlink()
    )
    return tuple(name for name in there if name not in listed and not name.startswith((".git/", ".cache/")))


def _entry(path: Path, file: File) -> Entry | Finding:
    fix = "it is not this commit's: correct model.revision, or deliver the model anew"
    if not path.is_file():
        return Finding("todo", f"{file.path} is missing", f"{path.parent} does not hold it", fix)
    if (size := path.stat().st_size) != file.size:
        return Finding("todo", f"{file.path} is {size} bytes long", f"the source lists {file.size}", fix)
    sha256 = hash_file(path, file.path)
    if file.sha256 is not None and sha256 != file.sha256:
        return Finding(
            "todo", f"{file.path} is another file", f"its sha256 is {sha256}, the source lists {file.sha256}", fix
        )
    if file.sha256 is None and file.git_sha1 is not None and (blob := hash_git(path)) != file.git_sha1:
        return Finding(
            "todo", f"{file.path} is another file", f"its git hash is {blob}, the source lists {file.git_sha1}", fix
        )
    return Entry(path=file.path, size=size, sha256=sha256, origin=MADE_BY_HAND)


STEP = Step("verify", VerifyInput, Verified, run)
