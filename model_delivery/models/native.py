"""What vLLM serves without code of the repository's own; the lists are made by
``scripts/native.py`` from the engine's environment.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

CLASS_OF = {
    "AutoTokenizer": "tokenizer_class",
    "AutoProcessor": "processor_class",
    "AutoImageProcessor": "image_processor_type",
    "AutoFeatureExtractor": "feature_extractor_type",
    "AutoVideoProcessor": "video_processor_type",
}
MISTRAL = ("--config-format", "mistral", "--load-format", "mistral")
TRUST = "--trust-remote-code"


def code_needed(name: str, config: Any) -> list[Any]:
    """What each ``auto_map`` of a configuration file (at any depth) holds that vLLM
    cannot do without.
    """
    found, parts = [], [config]
    while parts:
        part = parts.pop()
        if isinstance(part, dict) and part.get("auto_map") and not _native(name, part, whole=part is config):
            found.append(part["auto_map"])
        inner = part.values() if isinstance(part, dict) else part
        parts += [value for value in inner if isinstance(value, dict | list)]
    return found


def _native(name: str, config: Mapping[str, Any], *, whole: bool) -> bool:
    """A model is served natively where its architectures and its kind of configuration
    are known (a part of one may name no architecture), a tokenizer or processor where its
    class is.
    """
    if name == "config.json":
        named, kind = config.get("architectures", None if whole else ()), config.get("model_type")
        known = _known("architectures")
        all_known = isinstance(named, list | tuple) and (named or not whole) and all(n in known for n in named)
        return bool(all_known) and kind in _known("model_types")
    auto_map = config["auto_map"]
    keys = auto_map if isinstance(auto_map, dict) else ("",)
    return all(config.get(CLASS_OF.get(key, "")) in _known("classes") for key in keys)


def code_of(values: list[Any]) -> Iterator[str]:
    """What an ``auto_map`` names, as ``MODULE.CLASS``; ``OWNER/NAME--MODULE.CLASS`` is of
    another repository.
    """
    while values:
        value = values.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict | list):
            values += value.values() if isinstance(value, dict) else value


@cache
def _known(what: str) -> list[str]:
    lists: dict[str, list[str]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return lists[what]
