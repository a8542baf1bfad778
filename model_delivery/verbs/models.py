"""What a person asks of models alone, without a delivery: fetch into a folder, verify, collect garbage."""

from __future__ import annotations

from pathlib import Path

from model_delivery.base.findings import BadInput, Finding
from model_delivery.models.sources.model import Model
from model_delivery.models.store import Manifest, model_folder, read_manifest, verify
from model_delivery.models.store import garbage as store_garbage
from model_delivery.models.store.commit import Fetched
from model_delivery.models.store.commit import fetch as fetch_into
from model_delivery.models.store.garbage import Garbage
from model_delivery.models.store.layout import MANIFEST
from model_delivery.models.store.part import notes_of, part_of
from model_delivery.places.host.place import Host
from model_delivery.run.resolve import resolve_model
from model_delivery.run.session import frozen_releases


def fetch(model: Model, folder: Path) -> Fetched:
    """Resolve ``model`` and fill ``folder`` with it. BadInput where the folder holds files that would have to go."""
    if folder.exists() and not folder.is_dir():
        raise BadInput(Finding("todo", f"{folder} is a file", "a model is a folder", "name another DIR"))
    snapshot = resolve_model(model)
    manifest = read_manifest(folder)
    names = {file.path for file in snapshot.files} | {entry.path for entry in (manifest.files if manifest else ())}
    ours = {path for name in names for path in (folder / name, part_of(folder / name), notes_of(folder / name))} | {
        folder / MANIFEST
    }
    foreign = sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir() and path not in ours
    )
    if foreign:
        why = f"they are not the model's, and would be served unverified: {', '.join(foreign[:5])}{' …' if len(foreign) > 5 else ''}"
        raise BadInput(
            Finding("todo", f"{folder} holds other files", why, "name an empty or a new DIR, or remove them")
        )
    return fetch_into(model, snapshot, folder)


def verified(folder: Path, *, deep: bool) -> tuple[Manifest | None, list[Finding]]:
    """The folder's manifest, and what is wrong. BadInput where there is no such folder."""
    if not folder.is_dir():
        raise BadInput(
            Finding("todo", f"{folder} is no folder", "it does not exist, or is a file", "name the model's folder")
        )
    return read_manifest(folder), verify(folder, deep=deep)


def collect(home: Path, *, dry_run: bool) -> tuple[Garbage, ...]:
    """The garbage of this host's stores: of ``home``, and of every ``storage.path`` that a release names. In a dry run it stays."""
    host = Host(home)

    def known() -> list[tuple[Path, Path]]:
        frozen = [one for name in host.deliveries() for one in frozen_releases(host.world(name)).values()]
        roots = [Path(one.storage.path) if one.storage.path else home for one in frozen]
        return [(root, model_folder(root, one.lock.snapshot)) for root, one in zip(roots, frozen, strict=True)]

    def wanted() -> set[Path]:
        return {folder for _, folder in known()}

    found = store_garbage.find({home, *(root for root, _ in known())}, wanted)
    return found if dry_run else store_garbage.remove(found, wanted)
