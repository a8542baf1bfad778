"""Puts state that an older version wrote back, for a test: a host's folder under another
home, a namespace's objects into a control plane.

``old.tar.xz`` holds it, with a README that says how it was made: real runs, nothing
written by hand.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from tests.parts.cluster import Cluster
from tests.parts.timing_engine import engine_folder
from tests.parts.tiny_model import tiny_model

TAR = Path(__file__).with_name("old.tar.xz")
NAMED = ("ServingRuntime", "MLServiceRuntime", "Gateway")  # others name them


@cache
def kept() -> Mapping[str, bytes]:
    """Every file of the tar, by its path there."""
    with tarfile.open(TAR) as tar:
        files = {member.name.removeprefix("old/"): tar.extractfile(member) for member in tar if member.isfile()}
        return {name: file.read() for name, file in files.items() if file is not None}


def cases(where: Literal["host", "cluster"]) -> tuple[str, ...]:
    return tuple(sorted({name.split("/")[1] for name in kept() if name.startswith(f"{where}/")}))


def said(name: str, home: Path | None = None) -> dict[str, Any]:
    """What the old code said: ``host/CASE/facts.json``, with ``home`` as its own."""
    text = kept()[name].decode()
    found: dict[str, Any] = json.loads(text if home is None else text.replace("@HOME@", str(home)))
    return found


def host(case: str, home: Path) -> dict[str, Any]:
    """Write the case's folder to ``home`` (which must not exist); returns its facts.

    Engine and model must lie where ``facts["fixed"]`` says: their paths are part of a
    release's identity.
    """
    start = f"host/{case}/home/"
    for name in (name for name in kept() if name.startswith(start)):
        data, target = kept()[name], home / name.removeprefix(start)
        with suppress(UnicodeDecodeError):
            data = data.decode().replace("@HOME@", str(home)).encode()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        target.chmod(0o600)
    facts = said(f"host/{case}/facts.json", home)
    for empty in facts["snapshot"]["empty_folders"]:
        (home / empty).mkdir(parents=True, exist_ok=True)
    return facts


def engine_and_model() -> tuple[Path, Path]:
    """Where the old releases have them, made once for whoever runs beside."""
    engine, model = (Path(said("host/up/facts.json")["fixed"][what]) for what in ("engine", "model"))
    engine.parent.mkdir(exist_ok=True)
    with (engine.parent / "lock").open("a") as lock, tempfile.TemporaryDirectory(dir=engine.parent) as scratch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for made, wanted in (
            (engine_folder(Path(scratch) / "engine"), engine),
            (tiny_model(Path(scratch) / "model"), model),
        ):
            if _content(made) != _content(wanted):
                shutil.rmtree(wanted, ignore_errors=True)
                made.rename(wanted)
    return engine, model


def _content(folder: Path) -> Mapping[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*")}


def objects(case: str) -> list[dict[str, Any]]:
    """As they were in the cluster, managedFields and status included."""
    start = f"cluster/{case}/objects/"
    return [yaml.load(data, yaml.CSafeLoader) for name, data in kept().items() if name.startswith(start)]


def cluster(
    there: Cluster, case: str, with_claims: Callable[[], None] = lambda: None, step: str | None = None
) -> dict[str, Any]:
    """Make the objects as they were, each field held by whom it was held by, in the
    namespace of ``facts["fixed"]``, which must exist; returns the facts.

    ``with_claims`` is called when the claims are there (one that exists stays), and
    nothing else is. Left out: the steps' Jobs, which would run again, but those of
    ``step``; and what only that cluster knew (uids, addresses, volumes). A release that
    names uids gets the new ones.
    """
    facts, uids = said(f"cluster/{case}/facts.json"), dict[str, str]()
    waves: dict[str, list[dict[str, Any]]] = {"claims": [], "named": [], "others": [], "releases": []}
    for found in objects(case):
        release = found["metadata"].get("labels", {}).get("model-delivery/kind") == "Release"
        wave = {"PersistentVolumeClaim": "claims"} | dict.fromkeys(NAMED, "named")
        if found["kind"] != "Job" or (step and f"-{step}-" in found["metadata"]["name"]):
            waves["releases" if release else wave.get(found["kind"], "others")].append(found)
    for title, wave_objects in waves.items():
        for found in wave_objects:
            old = found["metadata"]["uid"]
            if title == "releases":
                for before, after in uids.items():
                    found["data"]["content"] = found["data"]["content"].replace(before, after)
            uids[old] = _made(there, _bare(found))
        if title == "claims":
            with_claims()
    return facts


def _bare(found: dict[str, Any]) -> dict[str, Any]:
    meta, spec = found["metadata"], found.get("spec", {})
    for key in ("uid", "resourceVersion", "generation", "creationTimestamp", "ownerReferences", "finalizers"):
        meta.pop(key, None)
    found.pop("status", None)
    meta["managedFields"] = [held for held in meta.get("managedFields", ()) if not held.get("subresource")]
    match found["kind"]:
        case "Service":
            for key in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
                spec.pop(key, None)
        case "PersistentVolumeClaim":
            spec.pop("volumeName", None)
            annotations = meta.get("annotations", {})
            meta["annotations"] = {key: value for key, value in annotations.items() if "kubernetes.io/" not in key}
        case "Job":
            del spec["selector"]
            labels = spec["template"]["metadata"]["labels"]
            for key in [key for key in labels if key.endswith(("controller-uid", "job-name"))]:
                del labels[key]
    return found


def _made(there: Cluster, found: dict[str, Any]) -> str:
    """Its new uid.

    A create adds whoever creates to the managers; a second write that changes nothing
    else takes that away.
    """
    api, meta = found["apiVersion"], found["metadata"]
    root = f"/{'apis' if '/' in api else 'api'}/{api}/namespaces/{meta['namespace']}/{found['kind'].lower()}s"
    held, path = meta["managedFields"], f"{root}/{meta['name']}"
    if found["kind"] == "PersistentVolumeClaim" and (there_already := there.client.get(path)).is_success:
        return str(there_already.json()["metadata"]["uid"])
    answer = there.client.post(root, json=found)
    assert answer.is_success, (path, answer.text)
    for _ in range(20):
        now = there.client.get(path).json()
        others = [field for field in now["metadata"].get("managedFields", ()) if field.get("subresource")]
        now["metadata"]["managedFields"] = [*held, *others]
        answer = there.client.put(path, json=now)
        if answer.status_code != 409:
            break
    assert answer.is_success, (path, answer.text)
    return str(answer.json()["metadata"]["uid"])
