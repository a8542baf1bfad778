"""What a listing must hold before a byte is moved: wanted names only, none that could leave its folder, nothing that runs code."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch

from model_delivery.base.findings import Finding, Refused
from model_delivery.values.snapshot import File

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
RESERVED = (".git", ".model-delivery", ".cache")


def select(
    files: Iterable[File], include: Sequence[str], exclude: Sequence[str], allow: Sequence[str]
) -> tuple[File, ...]:
    """The files that ``include`` names and ``exclude`` does not, sorted by path. Refused names every fault at once."""
    listed = {file.path: file for file in sorted(files, key=lambda file: file.path)}
    chosen = tuple(listed[path] for path in wanted(listed, include, exclude))
    faults = [
        Finding("todo", f"the file name {f.path!r} is refused", why, "the repository is not one to trust")
        for f in chosen
        if (why := name_fault(f.path))
    ]
    folded: dict[str, str] = {}
    for file in chosen:
        other = folded.setdefault(unicodedata.normalize("NFC", file.path).casefold(), file.path)
        if other != file.path:
            faults.append(
                Finding(
                    "todo",
                    f"{file.path} and {other} differ only in case",
                    "some file systems hold only one of them",
                    "exclude one in model.exclude",
                )
            )
    if "pickle" not in allow:
        why = "pickle files run code when they are loaded"
        fix = "exclude them, use a repository with *.safetensors, or allow: [pickle]"
        faults += [
            Finding("todo", f"the weights file {f.path} is refused", why, fix)
            for f in chosen
            if f.path.endswith(PICKLES)
        ]
    names = [f.path for f in chosen]
    if "config.json" not in names:
        faults.append(
            Finding(
                "todo",
                "the model has no config.json",
                f"{len(listed)} files are listed, {len(chosen)} wanted",
                "is it the right repository or folder?",
            )
        )
    if not any(name.endswith(".safetensors") or ("pickle" in allow and name.endswith(PICKLES)) for name in names):
        faults.append(
            Finding(
                "todo",
                "the model has no weights",
                "no *.safetensors is among the wanted files",
                "check model.include and model.exclude",
            )
        )
    if faults:
        raise Refused(*faults)
    return chosen


def wanted(paths: Iterable[str], include: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """Those that a pattern of ``include`` matches and none of ``exclude``."""
    return [
        path for path in paths if any(fnmatch(path, p) for p in include) and not any(fnmatch(path, p) for p in exclude)
    ]


def is_weights(path: str) -> bool:
    return path.endswith((".safetensors", ".gguf", *PICKLES))


def pinned(files: Iterable[File], pins: Mapping[str, str]) -> list[File]:
    """``files`` with the sha256 that the spec pins. Refused where a source states another one."""
    listed = list(files)
    wrong = [f for f in listed if f.sha256 is not None and pins.get(f.path, f.sha256) != f.sha256]
    if wrong:
        fix = "do not take it, or correct model.pins after you have found out why"
        raise Refused(
            *(
                Finding("todo", f"{f.path} is not what model.pins says", f"it is listed with sha256 {f.sha256}", fix)
                for f in wrong
            )
        )
    return [f.model_copy(update={"sha256": pins[f.path], "git_sha1": None}) if f.path in pins else f for f in listed]


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
        raise Refused(
            Finding("todo", "config.json is not JSON", str(error), "the file is broken at its source")
        ) from None
    if isinstance(said, dict) and said.get("auto_map") and "remote-code" not in allow:
        fix = "use a model that needs none, or allow: [remote-code] after you have read that code"
        raise Refused(Finding("todo", "the model wants to run code of its own", "config.json has auto_map", fix))
