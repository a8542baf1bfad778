"""What a listing must hold before a byte is moved: wanted names only, none that could leave its folder, nothing that runs code."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch

from delivery.findings import Finding, Refused
from delivery.sources import File

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
RESERVED = (".git", ".model-delivery", ".cache")


def select(files: Iterable[File], include: Sequence[str], exclude: Sequence[str], allow: Sequence[str]) -> tuple[File, ...]:
    """The files that ``include`` names and ``exclude`` does not, sorted by path. Refused names every fault at once."""
    listed = sorted(files, key=lambda file: file.path)
    chosen = tuple(f for f in listed if any(fnmatch(f.path, p) for p in include) and not any(fnmatch(f.path, p) for p in exclude))
    faults = [
        Finding(f"the file name {f.path!r} is refused", why, "the repository is not one to trust")
        for f in chosen
        if (why := name_fault(f.path))
    ]
    folded: dict[str, str] = {}
    for file in chosen:
        other = folded.setdefault(unicodedata.normalize("NFC", file.path).casefold(), file.path)
        if other != file.path:
            faults.append(
                Finding(
                    f"{file.path} and {other} differ only in case",
                    "some file systems hold only one of them",
                    "exclude one in model.exclude",
                )
            )
    if "pickle" not in allow:
        why = "pickle files run code when they are loaded"
        fix = "exclude them, use a repository with *.safetensors, or allow: [pickle]"
        faults += [Finding(f"the weights file {f.path} is refused", why, fix) for f in chosen if f.path.endswith(PICKLES)]
    names = [f.path for f in chosen]
    if "config.json" not in names:
        faults.append(
            Finding(
                "the model has no config.json",
                f"{len(listed)} files are listed, {len(chosen)} wanted",
                "is it the right repository or folder?",
            )
        )
    if not any(name.endswith(".safetensors") or ("pickle" in allow and name.endswith(PICKLES)) for name in names):
        faults.append(
            Finding("the model has no weights", "no *.safetensors is among the wanted files", "check model.include and model.exclude")
        )
    if faults:
        raise Refused(*faults)
    return chosen


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
    """Refused when config.json is not JSON, or names code of the repository's own (``auto_map``) that the spec does not allow."""
    try:
        said = json.loads(text)
    except ValueError as error:
        raise Refused(Finding("config.json is not JSON", str(error), "the file is broken at its source")) from None
    if isinstance(said, dict) and said.get("auto_map") and "remote-code" not in allow:
        fix = "use a model that needs none, or allow: [remote-code] after you have read that code"
        raise Refused(Finding("the model wants to run code of its own", "config.json has auto_map", fix))
