"""Verify as a step: what lies in a folder that was filled by hand is compared with what
its source lists.

Only then it gets a manifest.
"""

from __future__ import annotations

from pathlib import Path

from model_delivery.base import Finding, Part, Permanent, Progress, report
from model_delivery.models.listing import is_weights
from model_delivery.models.manifest import MANIFEST, Entry, read_manifest, write_manifest
from model_delivery.models.shards import MAIN, faults_in
from model_delivery.models.verify import hash_file, hash_git, misfit, names_in
from model_delivery.steps import Step
from model_delivery.values import File, Snapshot

MADE_BY_HAND = "by hand"


class VerifyInput(Part):
    """``folder`` holds what ``snapshot`` lists; ``allow``: as a spec's
    ``model.allow``.
    """

    snapshot: Snapshot
    folder: str
    allow: tuple[str, ...] = ()


class Verified(Part):
    """``others``: files there that are not the model's, a clone's own ones left out."""

    files: int
    bytes: int
    others: tuple[str, ...]


def run(given: VerifyInput) -> Verified:
    """Read every byte.

    Permanent where a file is missing or another one, where more weights lie there, or the
    manifest cannot be written.
    """
    folder, snapshot = Path(given.folder), given.snapshot
    others = _others(folder, snapshot)
    why, names = "an engine that takes every weights file would load it", {file.path for file in snapshot.files}
    faults = [
        Finding("store.file-too-many", f"{name} is not the model's", why, "remove it")
        for name in others
        if is_weights(name) and "/" not in name and MAIN not in names
    ]
    entries: list[Entry] = []
    for file in snapshot.files:
        report(Progress("verify", file.path, done=sum(entry.size for entry in entries), total=snapshot.size, unit="B"))
        result = _entry(folder / file.path, file)
        if isinstance(result, Entry):
            entries.append(result)
        else:
            faults.append(result)
    if faults := faults or faults_in(folder, names, given.allow):
        raise Permanent(*faults)
    manifest = read_manifest(folder)
    if manifest is None or list(manifest.files) != sorted(entries, key=lambda entry: entry.path):
        try:
            write_manifest(folder, snapshot, entries)
        except OSError as error:
            what = f"{folder / MANIFEST} cannot be written"
            fix = (
                "let the pod of serving.pod.security_context write there (its user owns the files, or fsGroup), "
                "then `deliver adopt` again"
            )
            raise Permanent(Finding("store.not-writable", what, error.strerror or str(error), fix)) from None
    return Verified(files=len(entries), bytes=snapshot.size, others=others)


def _others(folder: Path, snapshot: Snapshot) -> tuple[str, ...]:
    listed = {file.path for file in snapshot.files} | {MANIFEST}
    return tuple(name for name in names_in(folder) if name not in listed and not name.startswith((".git/", ".cache/")))


def _entry(path: Path, file: File) -> Entry | Finding:
    fix = "it is not this commit's: correct model.revision, or deliver the model anew"
    if fault := misfit(path, file.path, file.size, fix):
        return fault
    sha256 = hash_file(path, file.path)
    kind, total, listed = "sha256", sha256, file.sha256
    if listed is None and file.git_sha1 is not None:
        kind, total, listed = "git hash", hash_git(path), file.git_sha1
    if listed not in (None, total):
        why = f"its {kind} is {total}, the source lists {listed}"
        return Finding("store.sum-differs", f"{file.path} is another file", why, fix)
    return Entry(path=file.path, size=file.size, sha256=sha256, origin=MADE_BY_HAND)


STEP = Step("verify", VerifyInput, Verified, run)
