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


def needs_code(name: str, config: Mapping[str, Any]) -> bool:
    """Does this configuration file name code (``auto_map``) that vLLM cannot do without?

    A model is served natively where its architectures and its kind of configuration are
    known, a tokenizer or processor where its class is.
    """
    auto_map = config.get("auto_map")
    if not auto_map:
        return False
    if name == "config.json":
        named, kind = config.get("architectures"), config.get("model_type")
        known = _known("architectures")
        return not (
            isinstance(named, list) and named and all(n in known for n in named) and kind in _known("model_types")
        )
    keys = auto_map if isinstance(auto_map, dict) else ("",)
    return any(config.get(CLASS_OF.get(key, "")) not in _known("classes") for key in keys)


def code_of(config: Mapping[str, Any]) -> Iterator[str]:
    """What ``auto_map`` names, as ``MODULE.CLASS``; ``OWNER/NAME--MODULE.CLASS`` is of
    another repository.
    """
    values = [config.get("auto_map")]
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
