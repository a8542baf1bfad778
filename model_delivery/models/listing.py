"""What a listing must hold before a byte is moved: wanted names only, none that could
leave its folder, nothing that runs code.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch

from model_delivery.base import Finding, Refused, short
from model_delivery.values import File

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".npz")
RESERVED = (".git", ".model-delivery", ".cache")
DOCUMENTS = ("readme", "license", "licence", "notice", "copying", "changelog", "use_policy")
LARGEST_JSON = 256 << 20
MAY_BE_EMPTY = (".py", ".txt", ".md")
CONVERTED = "use the repository that it was made from, or one with *.safetensors beside its config.json"
NO_MODELS = (
    (("adapter_*",), "an adapter", "merge it into its base model (peft: merge_and_unload) and deliver the result"),
    (("*.gguf",), "GGUF files", CONVERTED),
    (("*.npz",), "weights for MLX", CONVERTED),
    ([f"*{suffix}" for suffix in PICKLES], "pickles", "use a repository with *.safetensors, or allow: [pickle]"),
    (("*.onnx", "*.h5", "*.msgpack", "*.tflite"), "weights in another form", CONVERTED),
    (("?*/config.json", "?*/*.safetensors"), "models in folders", "name the folder or repository of one of them"),
)


def select(
    files: Iterable[File], include: Sequence[str], exclude: Sequence[str], allow: Sequence[str]
) -> tuple[File, ...]:
    """The files that ``wanted`` names, sorted by path. Refused names every fault at
    once.
    """
    listed = {file.path: file for file in sorted(files, key=lambda file: file.path)}
    names = wanted(listed, include, exclude, allow)
    second = _second_documents(names)
    names = [name for name in names if name not in second]
    faults = [*_bad_names(names), *_sizes(listed[name] for name in names)]
    faults += _missing(names, [*listed], pickle="pickle" in allow)
    if faults:
        raise Refused(*faults)
    return tuple(listed[name] for name in names)


def wanted(
    paths: Iterable[str], include: Sequence[str], exclude: Sequence[str], allow: Sequence[str] = ()
) -> list[str]:
    """Those that a pattern of ``include`` matches and none of ``exclude``.

    Code comes where it is allowed, and only there; pickles too where nothing else is; a
    training's checkpoints only where ``include`` names them; ``consolidated*`` where a
    model is Mistral's own.
    """
    paths = list(paths)
    take, leave = set(include), set(exclude)
    if mistral_native(paths):
        leave -= {"consolidated*"}
    if "remote-code" in allow:
        take |= {"*.py"}
    else:
        leave |= {"*.py"}
    if "pickle" in allow and not any(map(_safetensors, paths)):
        take |= {"pytorch_model*.bin"}
    if not any("checkpoint" in pattern for pattern in include):
        leave |= {"checkpoint-*/*", "*/checkpoint-*/*"}
    return [path for path in paths if any(fnmatch(path, p) for p in take) and not any(fnmatch(path, p) for p in leave)]


def mistral_native(paths: Iterable[str]) -> bool:
    """Mistral's own form (``params.json``, ``consolidated*``), with nothing of the usual
    one to serve instead.
    """
    names = set(paths)
    own = {name for name in names if _safetensors(name) and name.startswith("consolidated")}
    usual = "config.json" in names and any(map(_safetensors, names - own))
    return "params.json" in names and bool(own) and not usual


def _safetensors(name: str) -> bool:
    """Weights that an engine finds: beside config.json, and no adapter's."""
    return name.endswith(".safetensors") and "/" not in name and not name.startswith("adapter_")


def is_weights(path: str) -> bool:
    return path.lower().endswith((".safetensors", ".gguf", *PICKLES))


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


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _bad_names(names: Iterable[str]) -> Iterator[Finding]:
    names, folded = list(names), dict[str, str]()
    folders = {_folded(name[:at]): name for name in names for at, each in enumerate(name) if each == "/"}
    for name in names:
        if why := name_fault(name):
            fix = "the repository is not one to trust"
            yield Finding("source.wrong-path", f"the file name {name!r} is refused", why, fix)
        if inner := folders.get(_folded(name)):
            what, why = f"{name} would be a file and a folder", f"{inner} is listed too"
            yield Finding("source.same-name", what, why, "exclude one in model.exclude")
        other = folded.setdefault(_folded(name), name)
        if other != name:
            what, why = f"{name} and {other} differ only in case", "some file systems hold only one of them"
            yield Finding("source.same-name", what, why, "exclude one in model.exclude")


def _second_documents(names: Sequence[str]) -> set[str]:
    """LICENSE.txt beside license.txt: nobody serves them, one is enough."""
    first = dict[str, str]()
    return {name for name in names if first.setdefault(_folded(name), name) != name and is_document(name)}


def is_document(name: str) -> bool:
    """Text for people: no part of what an engine reads."""
    return name.lower().rpartition("/")[2].startswith(DOCUMENTS)


def _sizes(files: Iterable[File]) -> Iterator[Finding]:
    for file in files:
        if file.path.endswith(".json") and file.size > LARGEST_JSON:
            why = f"it has {file.size} bytes, no model's JSON has more than {LARGEST_JSON}"
            yield Finding("source.too-large", f"{file.path} is too large", why, "exclude it in model.exclude")
        if file.size == 0 and not file.path.endswith(MAY_BE_EMPTY):
            fix = "it is broken at its source: use another revision, or exclude it in model.exclude"
            yield Finding("source.empty", f"{file.path} is empty", "there is nothing in it to read", fix)


def _missing(names: Sequence[str], listed: Sequence[str], *, pickle: bool) -> Iterator[Finding]:
    why, fix = _held(listed)
    pickles = [name for name in names if name.lower().endswith(PICKLES)]
    for name in () if pickle else pickles:
        danger = "pickle files run code when they are loaded"
        use = "exclude them, use a repository with *.safetensors, or allow: [pickle]"
        yield Finding("source.pickle", f"the weights file {name} is refused", danger, use)
    if "config.json" not in names and not mistral_native(names):
        yield Finding("source.no-config", "the model has no config.json", why, fix)
    if not (pickle and pickles) and not any(map(_safetensors, names)):
        if any(map(_safetensors, listed)):
            why, fix = "no *.safetensors is among the wanted files", "check model.include and model.exclude"
        yield Finding("source.no-weights", "the model has no weights", why, fix)


def _held(listed: Sequence[str]) -> tuple[str, str]:
    """What there is instead of a model, and what to do about it."""
    for patterns, what, fix in NO_MODELS:
        if found := [name for name in listed if any(fnmatch(name, pattern) for pattern in patterns)]:
            return f"it holds {what}: {_some(found)}", fix
    return f"{len(listed)} files are listed: {_some(listed)}", "is it the right repository or folder?"


def _some(names: Sequence[str]) -> str:
    return ", ".join(short(repr(name)[1:-1], 100) for name in names[:5]) + (" …" if len(names) > 5 else "")
