"""What a person asks of models alone, without a delivery: fetch into a folder, verify,
collect garbage.
"""

from __future__ import annotations

from pathlib import Path

from model_delivery.base import BadInput, Finding, Refused
from model_delivery.base.home import unwritable
from model_delivery.models.manifest import MANIFEST, WORK, Manifest, model_folder, read_manifest
from model_delivery.models.sources.spec import ModelSpec
from model_delivery.models.store import garbage
from model_delivery.models.store.commit import Fetched
from model_delivery.models.store.commit import fetch as fetch_into
from model_delivery.models.store.garbage import Garbage
from model_delivery.models.verify import names_in, verify
from model_delivery.places.host.place import Host
from model_delivery.run.frozen import releases
from model_delivery.run.record import load
from model_delivery.run.resolve import resolve_model
from model_delivery.run.rules import live
from model_delivery.targets.process import ENGINE
from model_delivery.values import RECORD_REF


def fetch(model: ModelSpec, folder: Path) -> Fetched:
    """Resolve ``model`` and fill ``folder`` with it. BadInput where the folder holds
    files that would have to go.
    """
    if folder.exists() and not folder.is_dir():
        raise BadInput(Finding("store.no-folder", f"{folder} is a file", "a model is a folder", "name another DIR"))
    if not folder.is_dir() and (why := unwritable(folder)):
        raise BadInput(Finding("store.not-writable", f"{folder} cannot be written", why, "name another DIR"))
    snapshot = resolve_model(model)
    manifest = read_manifest(folder)
    sizes = {file.path: file.size for file in snapshot.files}
    ours = {MANIFEST, *sizes, *(entry.path for entry in (manifest.files if manifest else ()))}
    there = {name: (folder / name).lstat().st_size for name in names_in(folder)}
    begun = (folder / MANIFEST).exists() or (folder / WORK).exists()
    if foreign := [n for n, size in there.items() if n not in ours or not (begun or size == sizes[n])]:
        shown = ", ".join(foreign[:5]) + (" …" if len(foreign) > 5 else "")
        why = f"they are not the model's, and would be served unverified: {shown}"
        fix = "name an empty or a new DIR, or remove them"
        raise BadInput(Finding("store.file-too-many", f"{folder} holds other files", why, fix))
    return fetch_into(model, snapshot, folder)


def verified(folder: Path, *, deep: bool) -> tuple[Manifest | None, list[Finding]]:
    """The folder's manifest, and what is wrong. BadInput where there is no folder."""
    if not folder.is_dir():
        why = "it does not exist, or is a file"
        raise BadInput(Finding("store.no-folder", f"{folder} is no folder", why, "name the model's folder"))
    return read_manifest(folder), verify(folder, deep=deep)


def collect(home: Path, *, dry_run: bool) -> tuple[Garbage, ...]:
    """The garbage of this host's stores: of ``home``, and of every ``storage.path`` that
    a release names: there, what this home alone uses. In a dry run it stays.
    """
    host = Host(home)

    def known() -> list[tuple[Path, Path]]:
        return [each for name in host.named() for each in _needed(host, name)]

    def wanted() -> set[Path]:
        return {folder for _, folder in known()}

    return garbage.Collector(home, wanted).collect((root for root, _ in known()), dry_run=dry_run)


def _needed(host: Host, name: str) -> list[tuple[Path, Path]]:
    """The store's root and the folder of each model that a release of ``name`` needs, or
    an engine was started with. Refused where it has some of which nothing is known.
    """
    world = host.world(name)
    books, home, objects = releases(world), host.home, world.objects
    needed = {
        r: (Path(f.storage.path or home), model_folder(Path(f.storage.path or home), f.lock.snapshot))
        for r, f in books.items()
    }
    engines = [seen.resource for ref, seen in objects.items() if ref.kind == ENGINE]
    for engine in engines:
        root, model = engine.spec.get("store") or home, engine.spec.get("model")
        if isinstance(root, str | Path) and isinstance(model, str):
            needed.setdefault(engine.ref.name, (Path(root), Path(root, model)))
    record = objects.get(RECORD_REF)
    used = live(load(record.resource.spec), 0) if record else set()
    lost = sorted({*used, *host.started(name), *(engine.ref.name for engine in engines)} - needed.keys())
    if lost or not (record or needed or not host.has_run(name)):
        what, folder = f"the books of {name} are gone", host.folder(name)
        why = f"nothing says what model its {f'release {lost[0]}' if lost else 'releases'} need, and nothing is removed"
        fix = (
            f"put back {folder / 'objects'}, or `deliver up` with its spec; else end what runs, and move {folder} away"
        )
        raise Refused(Finding("record.books-gone", what, why, fix))
    return list(needed.values())
