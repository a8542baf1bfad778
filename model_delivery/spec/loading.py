"""From YAML to DeliverySpec.

Every error is told with file, line, column, field, what was wrong and the nearest right
name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from model_delivery.base import BadInput, Finding, SecretRef, did_you_mean, plainly, read_file
from model_delivery.models.sources import SOURCES
from model_delivery.spec.model import DeliverySpec
from model_delivery.spec.positions import Key, Marks, read_yaml
from model_delivery.targets.protocol import NAMED

SPEC_FIX = "correct the spec; docs/spec.schema.json lists every field"
NOT_YET = {
    "lora": "LoRA adapters",
    "adapters": "LoRA adapters",
    "nodes": "serving on several nodes",
    "embeddings": "embedding models",
    "autoscaling": "autoscaling",
    "s3": "T9k's S3 storage",
}

MAX_TEXT = 8 << 20  # bytes of a file that a spec names
KINDS = {list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
NO_MAPPING = ("model_type", "model_attributes_type", "dict_type")
FILES = (
    "storage.path",
    "serving.api_key.file",
    "serving.env.*.file",
    *(f"model.{field}" for room in SOURCES.values() for field in room.files),
)
TEXTS = ("serving.chat_template", *(f"model.{field}" for room in SOURCES.values() for field in room.texts))
FILES_OR_NAMES = ("target.engine",)


def parse_spec(given: Mapping[str, Any]) -> DeliverySpec:
    """A spec from plain data (a flow's parameter). BadInput: a finding for each error."""
    return _check(given, Marks())


def load_spec(path: Path) -> DeliverySpec:
    """A spec from a YAML file; its relative paths become absolute, and the texts that it
    names are read in.

    BadInput otherwise.
    """
    given, marks = read_yaml(path)
    if not isinstance(given, dict):
        what, why = f"{path}:1:1: a spec is a mapping of fields", f"this is {KINDS.get(type(given), 'a single value')}"
        raise BadInput(Finding("spec.not-a-mapping", what, why, SPEC_FIX))
    _inline(given, path.absolute().parent, marks)
    return _check(given, marks)


def _check(given: Mapping[str, Any], marks: Marks) -> DeliverySpec:
    try:
        spec = DeliverySpec.model_validate(given)
    except ValidationError as error:
        findings: dict[str, tuple[tuple[int, int], Finding]] = {}
        problems = error.errors(include_url=False, include_input=False)
        texts = {problem["loc"][:-1] for problem in problems if problem["type"] == "string_type"}
        for problem in problems:
            if problem["type"] in NO_MAPPING and problem["loc"][:-1] in texts:
                continue  # a number where a text, or where a secret is named, may stand
            location, finding = _fault(problem, given)
            mark, where = marks.where(location)
            findings.setdefault(finding.what, (mark, replace(finding, what=where + finding.what)))
        raise BadInput(*(finding for _, finding in sorted(findings.values(), key=lambda pair: pair[0]))) from None
    wrong = [Finding("spec.wrong-value", what, "", SPEC_FIX) for what in _placed(spec.faults(), marks)]
    wrong += (Finding("spec.plain-secret", what, "", SPEC_FIX) for what in _placed(spec.secrets(), marks))
    if wrong:
        raise BadInput(*wrong)
    return spec


def _placed(faults: Iterable[tuple[tuple[Key, ...], str]], marks: Marks) -> Iterator[str]:
    yield from (f"{marks.where(at)[1]}{'.'.join(map(str, at))}: {why}" for at, why in faults)


def _fault(problem: Any, given: Mapping[str, Any]) -> tuple[tuple[Key, ...], Finding]:
    kind, context = problem["type"], problem.get("ctx", {})
    location = tuple(_written(problem["loc"], given))
    if kind == "union_tag_invalid":
        location = (*location, context["discriminator"].strip("'"))
    field = ".".join(map(str, location)) or "the spec"
    if kind == "extra_forbidden":
        what = f"{field}: unknown field{_nearest(str(location[-1]), problem['loc'][:-1])}"
        return location, Finding("spec.unknown-field", what, "", SPEC_FIX)
    if kind == "missing":
        return location[:-1], Finding("spec.missing-field", f"{field}: missing", "", SPEC_FIX)
    if kind == "union_tag_not_found":
        what = f"{field}: {context['discriminator']} is missing"
        return location, Finding("spec.missing-field", what, "", SPEC_FIX)
    if kind in NO_MAPPING and set(get_args(SecretRef)) & set(_classes_at(problem["loc"])):
        return location, Finding("spec.plain-secret", f"{field}: {NAMED}", "", SPEC_FIX)
    return location, Finding("spec.wrong-value", f"{field}: {_wrong(problem, location, given)}", "", SPEC_FIX)


def _wrong(problem: Any, location: tuple[Key, ...], given: Any) -> str:
    context = problem.get("ctx", {})
    match problem["type"]:
        case "union_tag_invalid":
            tags = context["expected_tags"]
            return f"must be one of {tags}{_did_you_mean(context['tag'], tags)}"
        case "literal_error":
            names = context["expected"]
            return f"must be {names}{_did_you_mean(str(reduce(getitem, location, given)), names)}"
        case "string_pattern_mismatch" if location == ("name",):
            return "must be a DNS label: lower-case letters, digits and '-', at most 40 characters"
        case "string_type":
            return 'must be text: put it in quotes, "…"'
        case "tuple_type":
            return "must be a list, such as [a, b]"
    return plainly(problem)


def _written(loc: tuple[Key, ...], given: Any) -> Iterator[Key]:
    """``loc`` as the user wrote it: without the union members that pydantic adds."""
    here: Any = given
    for at, key in enumerate(loc):
        if (isinstance(here, Mapping) and key in here) or (
            isinstance(here, list | tuple) and isinstance(key, int) and key < len(here)
        ):
            here = here[key]  # type: ignore[index]
        elif at == len(loc) - 1 and not (
            isinstance(key, str) and (key[:1].isupper() or key in ("str", "constrained-str", "dict[str,any]"))
        ):
            here = None
        else:
            continue
        yield key


def _did_you_mean(text: str, names: str) -> str:
    known = re.findall(r"'([^']*)'", names)
    near = did_you_mean(text, known) if len(known) > 1 else ""
    return f"; {near}" if near else ""


def _nearest(name: str, loc: tuple[Key, ...]) -> str:
    if name.lower() in NOT_YET:
        return f"; {NOT_YET[name.lower()]} is not there yet"
    fields = sorted({f.alias or field for model in _classes_at(loc) for field, f in model.model_fields.items()})
    near = did_you_mean(name, fields, 0.5)
    return f"; {near}" if near else f"; known here: {', '.join(fields)}"


def _classes_at(loc: tuple[Key, ...]) -> list[type[BaseModel]]:
    """What may stand at a location as pydantic gives it (with the tags of unions)."""
    models: list[type[BaseModel]] = [DeliverySpec]
    for key in loc:
        fields = [(m, f, key in (name, f.alias)) for m in models for name, f in m.model_fields.items()]
        inner = [part for _, f, named in fields if named for part in _classes(f.annotation)]
        tagged = [m for m, f, _ in fields if key == m.__name__ or key in get_args(f.annotation)]
        models = inner or tagged or models
    return models


def _classes(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _classes(inner)


def _inline(given: dict[str, Any], base: Path, marks: Marks) -> None:
    """A flow's parameter must not depend on where it runs: no relative paths, and the
    texts themselves, not their names.
    """
    for owner, keys, text in _texts(given, *FILES, *FILES_OR_NAMES):
        if "/" in text or ".".join(map(str, keys)) not in FILES_OR_NAMES:
            owner[keys[-1]] = str(_absolute(base, text))
    for owner, keys, text in _texts(given, *TEXTS):
        owner[keys[-1]] = _content(_absolute(base, text), keys, marks)
    for owner, keys, text in _texts(given, "gates.throughput.profile"):
        if text.endswith((".yaml", ".yml")):
            owner[keys[-1]] = read_profile(_absolute(base, text), keys, marks)


def read_profile(path: Path, keys: tuple[Key, ...] = ("profile",), marks: Marks | None = None) -> Any:
    """A load profile's content, the prompts that it names read in; the rest says where a
    spec names it.
    """
    profile, _ = read_yaml(path)
    for owner, _, text in _texts(profile, "prompts"):
        owner["prompts"] = _content(_absolute(path.parent, text), keys, marks or Marks()).splitlines()
    return profile


def _absolute(base: Path, text: str) -> Path:
    return (base / Path(text).expanduser()).resolve()


def _texts(given: Any, *fields: str) -> Iterator[tuple[Any, tuple[Key, ...], str]]:
    """The texts at ``fields`` (``*``: any name or number): what holds each, its location,
    and the text.
    """
    for field in fields:
        yield from _texts_below(given, field.split("."), ())


def _texts_below(here: Any, names: Sequence[str], at: tuple[Key, ...]) -> Iterator[tuple[Any, tuple[Key, ...], str]]:
    items = here.items() if isinstance(here, dict) else enumerate(here) if isinstance(here, list) else ()
    for key, value in list(items):
        if names[0] not in ("*", key):
            continue
        if names[1:]:
            yield from _texts_below(value, names[1:], (*at, key))
        elif value and isinstance(value, str):
            yield here, (*at, key), value


def _content(path: Path, keys: tuple[Key, ...], marks: Marks) -> str:
    try:
        return read_file(path, MAX_TEXT, links=True).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = f"{marks.where(keys)[1]}{'.'.join(map(str, keys))}: {path} cannot be read"
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise BadInput(Finding("spec.not-readable", what, why, "name a readable text file")) from error
