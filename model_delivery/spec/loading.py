"""From YAML to DeliverySpec: every error is told with file, line, column, field, what was wrong and the nearest right name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from model_delivery.base.findings import BadInput, Finding
from model_delivery.spec.model import DeliverySpec
from model_delivery.spec.positions import Key, Marks, read_yaml

SPEC_FIX = "correct the spec; docs/spec.schema.json lists every field"
NOT_YET = {
    "lora": "LoRA adapters",
    "adapters": "LoRA adapters",
    "nodes": "serving on several nodes",
    "embeddings": "embedding models",
    "autoscaling": "autoscaling",
    "s3": "T9k's S3 storage",
}


def parse_spec(given: Mapping[str, Any]) -> DeliverySpec:
    """A spec from plain data (a flow's parameter). BadInput with one finding per error."""
    return _check(given, {}, "")


def load_spec(path: Path) -> DeliverySpec:
    """A spec from a YAML file; its relative paths become absolute, and the texts that it names are read in. BadInput otherwise."""
    given, marks = read_yaml(path)
    if not isinstance(given, dict):
        raise BadInput(
            Finding("todo", f"{path}:1:1: a spec is a mapping of fields", f"this is a {type(given).__name__}", SPEC_FIX)
        )
    _inline(given, path.absolute().parent, marks, str(path))
    return _check(given, marks, str(path))


def _check(given: Mapping[str, Any], marks: Marks, file: str) -> DeliverySpec:
    try:
        return DeliverySpec.model_validate(given)
    except ValidationError as error:
        findings: dict[str, tuple[tuple[int, int], Finding]] = {}
        for problem in error.errors(include_url=False, include_input=False):
            location, told = _told(problem, given)
            where = _where(location, marks, file)
            findings.setdefault(told, (where[0], Finding("todo", where[1] + told, "", SPEC_FIX)))
        raise BadInput(*(finding for _, finding in sorted(findings.values(), key=lambda pair: pair[0]))) from None


def _where(location: tuple[Key, ...], marks: Marks, file: str) -> tuple[tuple[int, int], str]:
    """Position and prefix of the deepest part of ``location`` that the file has."""
    for depth in range(len(location), -1, -1):
        mark = marks.get(location[:depth])
        if mark is not None:
            return mark, f"{file}:{mark[0]}:{mark[1]}: "
    return (0, 0), f"{file}: " if file else ""


def _told(problem: Any, given: Mapping[str, Any]) -> tuple[tuple[Key, ...], str]:
    location = tuple(_written(problem["loc"], given))
    field = ".".join(map(str, location)) or "the spec"
    match problem["type"]:
        case "extra_forbidden":
            return location, f"{field}: unknown field{_nearest(location, problem['loc'])}"
        case "missing":
            return location[:-1], f"{field}: missing"
        case "union_tag_invalid":
            tag = problem["ctx"]["discriminator"].strip("'")
            near = difflib.get_close_matches(
                problem["ctx"]["tag"], [name.strip("' ") for name in problem["ctx"]["expected_tags"].split(",")], 1
            )
            return (
                *location,
                tag,
            ), f"{field}.{tag}: must be one of {problem['ctx']['expected_tags']}{_did_you_mean(near)}"
        case "union_tag_not_found":
            return location, f"{field}: {problem['ctx']['discriminator']} is missing"
        case "literal_error":
            near = difflib.get_close_matches(
                str(_value(given, location)), re.findall(r"'([^']*)'", problem["ctx"]["expected"]), 1
            )
            return location, f"{field}: must be {problem['ctx']['expected']}{_did_you_mean(near)}"
        case "string_pattern_mismatch" if field == "name":
            return location, f"{field}: must be a DNS label: lower-case letters, digits and '-', at most 40 characters"
        case "model_type" | "model_attributes_type" | "dict_type" if _is_secret(location):
            return (
                location,
                f"{field}: name where the secret is, never the secret itself: {{env: NAME}}, {{file: PATH}} or {{kube: {{name: …, key: …}}}}",
            )
        case "string_type":
            return location, f'{field}: must be text: put it in quotes, "…"'
        case "tuple_type":
            return location, f"{field}: must be a list, such as [a, b]"
        case "model_type" | "model_attributes_type" | "dict_type":
            return location, f"{field}: must be a mapping of fields"
    return location, f"{field}: {problem['msg'].removeprefix('Value error, ')}"


def _written(loc: tuple[Key, ...], given: Any) -> Iterator[Key]:
    """``loc`` as the user wrote it: without the union members that pydantic adds."""
    here: Any = given
    for at, key in enumerate(loc):
        if (isinstance(here, Mapping) and key in here) or (
            isinstance(here, list | tuple) and isinstance(key, int) and key < len(here)
        ):
            here = here[key]  # type: ignore[index]
        elif at == len(loc) - 1 and not (
            isinstance(key, str) and (key[:1].isupper() or key in ("str", "dict[str,any]"))
        ):
            here = None
        else:
            continue
        yield key


def _is_secret(location: tuple[Key, ...]) -> bool:
    return bool(location) and (location[-1] in ("token", "api_key") or (len(location) > 2 and location[-2] == "env"))


def _did_you_mean(near: list[str]) -> str:
    return f"; did you mean {near[0]}?" if near else ""


def _value(given: Any, location: tuple[Key, ...]) -> Any:
    for key in location:
        given = given[key]
    return given


def _nearest(location: tuple[Key, ...], loc: tuple[Key, ...]) -> str:
    name = str(location[-1])
    if name.lower() in NOT_YET:
        return f"; {NOT_YET[name.lower()]} is not there yet"
    near = difflib.get_close_matches(name, fields_at(loc[:-1]), 1, 0.5)
    return f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(fields_at(loc[:-1]))}"


def fields_at(loc: tuple[Key, ...]) -> list[str]:
    """The names that are known at a location as pydantic gives it (with the tags of unions)."""
    models: list[type[BaseModel]] = [DeliverySpec]
    for key in loc:
        inner = [
            m
            for model in models
            for name, f in model.model_fields.items()
            if key in (name, f.alias)
            for m in _models(f.annotation)
        ]
        if inner:
            models = inner
            continue
        tagged = [
            m
            for m in models
            if key == m.__name__ or any(key in getattr(f.annotation, "__args__", ()) for f in m.model_fields.values())
        ]
        models = tagged or models
    return sorted({field.alias or name for model in models for name, field in model.model_fields.items()})


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models(inner)


def _inline(given: dict[str, Any], base: Path, marks: Marks, file: str) -> None:
    """Make relative paths absolute and read the texts that a spec names; a flow's parameter must not depend on where it runs."""
    serving = given.get("serving")
    env = serving.get("env") if isinstance(serving, dict) else None
    secrets: list[tuple[Key, ...]] = [
        ("serving", "env", str(name), "file") for name in (env if isinstance(env, dict) else ())
    ]
    model = given.get("model")
    others = model.get("fallback") if isinstance(model, dict) else None
    secrets += [
        ("model", "fallback", n, "token", "file") for n in range(len(others) if isinstance(others, list) else 0)
    ]
    for keys in (
        ("model", "path"),
        ("storage", "path"),
        ("model", "token", "file"),
        ("serving", "api_key", "file"),
        ("target", "engine"),
        *secrets,
    ):
        owner, text = _text_at(given, keys)
        if text and (keys != ("target", "engine") or "/" in text):
            owner[str(keys[-1])] = str(_absolute(base, text))
    for keys in (("model", "manifest"), ("serving", "chat_template")):
        owner, text = _text_at(given, keys)
        if text:
            owner[keys[-1]] = _content(_absolute(base, text), keys, marks, file)
    keys = ("gates", "throughput", "profile")
    owner, text = _text_at(given, keys)
    if text.endswith((".yaml", ".yml")):
        owner["profile"] = read_profile(_absolute(base, text), keys, marks, file)


def read_profile(path: Path, keys: tuple[str, ...] = ("profile",), marks: Marks | None = None, file: str = "") -> Any:
    """A load profile's content, the prompts that it names read in; the rest says where a spec names it."""
    profile, _ = read_yaml(path)
    prompts = profile.get("prompts") if isinstance(profile, dict) else None
    if isinstance(prompts, str):
        profile["prompts"] = _content(_absolute(path.parent, prompts), keys, marks or {}, file).splitlines()
    return profile


def _absolute(base: Path, text: str) -> Path:
    return (base / Path(text).expanduser()).resolve()


def _text_at(given: dict[str, Any], keys: tuple[Key, ...]) -> tuple[dict[str, Any], str]:
    """The mapping that holds the last of ``keys``, and its text; an empty text when there is none."""
    here: Any = given
    for key in keys[:-1]:
        here = here[key] if isinstance(key, int) else here.get(key) if isinstance(here, dict) else None
    text = here.get(keys[-1]) if isinstance(here, dict) else None
    return (here, text) if isinstance(text, str) else ({}, "")


def _content(path: Path, keys: tuple[str, ...], marks: Marks, file: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        _, where = _where(keys, marks, file)
        raise BadInput(
            Finding(
                "todo",
                f"{where}{'.'.join(keys)}: {path} cannot be read",
                type(error).__name__,
                "name a readable text file",
            )
        ) from error
