"""What a listing must hold before a byte is moved: wanted names only, none that could
leave its folder, nothing that runs code.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch

from model_delivery.base import Finding, Refused
from model_delivery.values import File

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
RESERVED = (".git", ".model-delivery", ".cache")


def select(
    files: Iterable[File], include: Sequence[str], exclude: Sequence[str], allow: Sequence[str]
) -> tuple[File, ...]:
    """The files that ``include`` names and ``exclude`` does not, sorted by path. Refused
    names every fault at once.
    """
    listed = {file.path: file for file in sorted(files, key=lambda file: file.path)}
    names = wanted(listed, include, exclude)
    faults = [*_bad_names(names), *_missing(names, len(listed), pickle="pickle" in allow)]
    if faults:
        raise Refused(*faults)
    return tuple(listed[name] for name in names)


def wanted(paths: Iterable[str], include: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """Those that a pattern of ``include`` matches and none of ``exclude``."""
    return [
        path for path in paths if any(fnmatch(path, p) for p in include) and not any(fnmatch(path, p) for p in exclude)
    ]


def is_weights(path: str) -> bool:
    return path.endswith((".safetensors", ".gguf", *PICKLES))


def pinned(files: Iterable[File], pins: Mapping[str, str]) -> list[File]:
    """``files`` with the sha256 that the spec pins. Refused where a source states another
    one.
    """
    listed = list(files)
    fix = "do not take it, or correct model.pins after you have found out why"
    faults = [
        Finding(
            "source.pin-differs", f"{f.path} is not what model.pins says", f"it is listed with sha256 {f.sha256}", fix
        )
        for f in listed
        if f.sha256 is not None and pins.get(f.path, f.sha256) != f.sha256
    ]
    if faults:
        raise Refused(*faults)
    return [f.model_copy(update={"sha256": pins[f.path], "git_sha1": None}) if f.path in pins else f for f in listed]


def hashed(files: tuple[File, ...]) -> tuple[File, ...]:
    """``files``, all of which can be verified; else Refused."""
    if unknown := [f.path for f in files if f.sha256 is None and f.git_sha1 is None]:
        what, fix = "the hub states no hash for some files", "pin their sha256 in model.pins, or use another source"
        raise Refused(Finding("source.no-hash", what, f"{', '.join(unknown[:5])} could not be verified", fix))
    return files


def name_fault(name: str) -> str:
    """Why a name must not become a path on this machine; empty when it may."""
    parts = name.split("/")
    if not name or name.startswith("/") or "\\" in name:
        return "it is no relative path"
    if any(part in ("", ".", "..") for part in parts):
        return "it would leave its folder"
    if any(part.casefold().startswith(RESERVED) for part in parts):
        return "that name is reserved"
    if any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn") for character in name):
        return "it holds control characters"
    if any(len(part.encode()) > 255 for part in parts):
        return "it is too long"
    return ""


def check_config(text: bytes, allow: Sequence[str]) -> None:
    """Refused when config.json is not JSON, or names code of the repository's own
    (``auto_map``) that the spec does not allow.
    """
    try:
        config = json.loads(text)
    except ValueError as error:
        what, fix = "config.json is not JSON", "the file is broken at its source"
        raise Refused(Finding("source.broken-config", what, str(error), fix)) from None
    if isinstance(config, dict) and config.get("auto_map") and "remote-code" not in allow:
        what = "the model wants to run code of its own"
        fix = "use a model that needs none, or allow: [remote-code] after you have read that code"
        raise Refused(Finding("source.remote-code", what, "config.json has auto_map", fix))


def _bad_names(names: Iterable[str]) -> Iterator[Finding]:
    folded: dict[str, str] = {}
    for name in names:
        if why := name_fault(name):
            fix = "the repository is not one to trust"
            yield Finding("source.wrong-path", f"the file name {name!r} is refused", why, fix)
        other = folded.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            what, why = f"{name} and {other} differ only in case", "some file systems hold only one of them"
            yield Finding("source.same-name", what, why, "exclude one in model.exclude")


def _missing(names: Sequence[str], listed: int, *, pickle: bool) -> Iterator[Finding]:
    pickles = [name for name in names if name.endswith(PICKLES)]
    if not pickle:
        why = "pickle files run code when they are loaded"
        fix = "exclude them, use a repository with *.safetensors, or allow: [pickle]"
        for name in pickles:
            yield Finding("source.pickle", f"the weights file {name} is refused", why, fix)
    if "config.json" not in names:
        why, fix = f"{listed} files are listed, {len(names)} wanted", "is it the right repository or folder?"
        yield Finding("source.no-config", "the model has no config.json", why, fix)
    if not (pickle and pickles) and not any(name.endswith(".safetensors") for name in names):
        why, fix = "no *.safetensors is among the wanted files", "check model.include and model.exclude"
        yield Finding("source.no-weights", "the model has no weights", why, fix)
