"""Where an object of somebody's, or a new spec, holds what looks like a secret; never
what it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from model_delivery.values.serving import means, option

CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
WORDS = re.compile(r"[a-z]+")
SECRET = re.compile(
    r"(token|secrets?|passwords?|passwd|passphrase|pwd|keys?|credentials?|creds?|bearer|jwt|auth|authorization|^pat"
    r"|(?<!by)pass)$"
)
ABOUT_ONE = re.compile(
    "file|path|dir|name|type|mode|limit|count|size|length|ttl|timeout|seconds|url|header|threshold|id"
)
NO_SECRET = re.compile(r"|\$.*|true|false|yes|no|on|off|null|none|\d|(/[\w.-]+)+/?", re.IGNORECASE | re.DOTALL)
DIGEST = re.compile(r"(?:sha\d+:)?[0-9a-f]{32,}")
TOKEN = re.compile(
    r"\bhf_(?=[A-Za-z0-9]*[A-Z0-9])[A-Za-z0-9]{5,}|\b(sk|pk|nvapi|glpat|xox[abprs])-[\w-]{8,}|\bgh[pousr]_\w{16,}"
    r"|\bgithub_pat_\w{16,}|\bAKIA[0-9A-Z]{16}\b|\bAIza[\w-]{30,}|\beyJ[\w-]{8,}\.eyJ[\w-]{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY|(?<=://)[^/\s:@]*:[^/\s@$]+(?=@)|\b[Bb]earer\s+[\w.~+/-]{8,}"
)
SAID = re.compile(
    r"""(?:(?P<flag>--?[A-Za-z][\w.-]*)(?:=|\s+(?!-))|\b(?P<set>[A-Za-z_]\w*)=|"(?P<json>[\w.-]+)"\s*:\s*)"""
    r"""(?=(?P<value>"[^"]*"|'[^']*'|[^\s;&|,}]+))"""
)


def plain_secrets(thing: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """What holds each, and where that is: variables and parameters by name, arguments and
    the text of a shell, and whatever has the form of a known token.
    """
    if isinstance(thing, Mapping):
        yield from _of_mapping(thing, where)
    elif isinstance(thing, Sequence) and not isinstance(thing, str):
        for at, value in enumerate(thing):
            name = str(value.get("name", at)) if isinstance(value, Mapping) else str(at)
            short = where.rpartition(".")[2] if where.endswith(("ontainers", "ontainersResources")) else where
            yield from plain_secrets(value, f"{short}[{name}]")
    elif isinstance(thing, str) and TOKEN.search(thing):
        yield where, where


def spoken_secrets(words: Sequence[str], where: str) -> Iterator[tuple[str, str]]:
    """Flags and settings in arguments, also in a shell's text."""
    for said in SAID.finditer(" ".join(words)):
        name = said["flag"] or said["set"] or said["json"]
        if is_secret(name, said["value"].strip("'\"")):
            yield name, where


def is_secret(name: str, value: Any) -> bool:
    """By its name; a reference, a switch, a path is none."""
    words = WORDS.findall(CAMEL.sub("_", name).lower())
    named = any(map(SECRET.search, words)) and not ABOUT_ONE.fullmatch(words[-1])
    return bool(named and isinstance(value, str | int) and not NO_SECRET.fullmatch(str(value)))


def of_settings(env: Mapping[str, Any]) -> Iterator[str]:
    """The names of those that are secret, by name or form."""
    for name, value in env.items():
        if is_secret(name, value) or (isinstance(value, str) and TOKEN.search(value)):
            yield name


def of_words(words: Sequence[str]) -> bool:
    """Does an engine's argument hold one? Also by the beginning of an option's name."""
    named = any(means(option(word), ("--hf-token",)) for word in words)
    return named or any(TOKEN.search(word) for word in words) or any(spoken_secrets(words, ""))


def masked(text: str) -> str:
    return TOKEN.sub("***", text)


def _of_mapping(thing: Mapping[str, Any], where: str) -> Iterator[tuple[str, str]]:
    if "value" in thing and is_secret(str(thing.get("name", "")), thing["value"]):
        yield str(thing["name"]), where
        return
    yield from spoken_secrets([*map(str, (*(thing.get("command") or ()), *(thing.get("args") or ())))], where)
    for key, value in thing.items():
        named = where.endswith(("parameters", "annotations"))
        if named and is_secret(key, value) and not DIGEST.fullmatch(str(value)):
            yield key, where
        else:
            yield from plain_secrets(value, f"{where}.{key}".lstrip("."))
