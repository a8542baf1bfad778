"""Is a file what its name says? A git-LFS pointer, a web page, text that is no JSON, a
cut safetensors file are not; and code is the spec's to allow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from model_delivery.base import Finding, short
from model_delivery.models.native import code_needed, code_of
from model_delivery.models.safetensors import check_header

POINTER = b"version https://git-lfs"
PAGES = (b"<!doctype html", b"<html", b"<?xml", b"<error>")
OF_MARKUP = (".xml", ".svg", ".html", ".htm")
TOKENS = ("merges.txt", "vocab.txt", ".model", ".tiktoken")
BEFORE = re.compile(rb"(?:\xef\xbb\xbf|\s|<!--.*?-->)*", re.DOTALL)
OBJECTS = ("config.json", "params.json", "tokenizer.json", "special_tokens_map.json", "vocab.json")
EXCLUDE_IT = "the file is broken at its source: use another revision, or exclude it in model.exclude"


def fault_in(path: Path, name: str, names: Container[str], allow: Sequence[str]) -> Finding | None:
    """What is wrong with a model's file (called ``name``, of a model that holds
    ``names``); None when nothing is.
    """
    with path.open("rb") as file:
        raw = file.read(4096)
    head = BEFORE.sub(b"", raw, count=1)
    if head.startswith(POINTER):
        fix = "run `git lfs pull` in that folder, or use a repository that holds the file itself"
        return Finding("source.lfs-pointer", f"{name} is a git-LFS pointer", "the real file was never fetched", fix)
    answered = name.endswith((".model", ".tiktoken")) and raw.startswith(b"{")
    if answered or (head.lower().startswith(PAGES) and not name.endswith(OF_MARKUP)):
        return Finding("source.web-page", f"{name} is a web page", "a server's page was saved as the file", EXCLUDE_IT)
    if name.endswith(TOKENS) and not head:
        return Finding("source.empty-file", f"{name} is empty", "a tokenizer reads it", EXCLUDE_IT)
    return _fault_in_json(path, name, names, allow) if name.endswith(".json") else check_header(path, name)


def parsed(text: bytes, name: str) -> Any:
    """The JSON of ``text``, as an engine would read it; a Finding where it is none."""
    try:
        return json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        why = short(str(error), 200) if text.strip() else "it is empty"
        return Finding("source.broken-config", f"{name} is not JSON", why, EXCLUDE_IT)


def _fault_in_json(path: Path, name: str, names: Container[str], allow: Sequence[str]) -> Finding | None:
    config = parsed(path.read_bytes(), name)
    if isinstance(config, Finding):
        return config
    if fault := _code(config, name, names, allow):
        return fault
    if not isinstance(config, dict) and name.endswith(OBJECTS):
        why = f"it is a {type(config).__name__}"
        return Finding("source.broken-config", f"{name} is no JSON object", why, EXCLUDE_IT)
    if name == "config.json" and not (config.get("model_type") or config.get("architectures")):
        why = "it has neither model_type nor architectures"
        return Finding("source.broken-config", f"{name} says no model", why, EXCLUDE_IT)
    return None


def _code(config: Any, name: str, names: Container[str], allow: Sequence[str]) -> Finding | None:
    """An engine is offline: what it may run must be in the model's folder."""
    needed = code_needed(name, config) if isinstance(config, dict | list) else []
    if needed and "remote-code" not in allow:
        what = "the model wants to run code of its own"
        fix = "use a model that needs none, or allow: [remote-code] after you have read that code"
        return Finding("source.remote-code", what, f"{name} has auto_map", fix)
    for named in code_of(needed):
        owner, _, module = named.rpartition("--")
        file = f"{module.partition('.')[0]}.py"
        if owner or file not in names:
            why = f"{name} names {named}" + (f", which is in {owner}" if owner else "")
            fix = "use a repository that holds its own code (its maker's), with model.include naming it"
            return Finding("source.no-code", f"the model's code {file} is not in the repository", why, fix)
    return None
