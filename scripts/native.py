"""What vLLM serves without a repository's own code: architectures, configurations, and
classes of tokenizers and processors.

Run it by an engine's python, into ``model_delivery/models/native.json``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from transformers.models.auto import (
    configuration_auto,
    feature_extraction_auto,
    image_processing_auto,
    processing_auto,
    tokenization_auto,
    video_processing_auto,
)
from vllm.model_executor.models.registry import _VLLM_MODELS
from vllm.transformers_utils.config import _CONFIG_REGISTRY

CLASSES = (
    tokenization_auto.TOKENIZER_MAPPING_NAMES,
    processing_auto.PROCESSOR_MAPPING_NAMES,
    image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES,
    feature_extraction_auto.FEATURE_EXTRACTOR_MAPPING_NAMES,
    video_processing_auto.VIDEO_PROCESSOR_MAPPING_NAMES,
)


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif value is not None:
        for inner in value.values() if isinstance(value, dict) else value:
            yield from texts(inner)


tokenizers = {name.removesuffix("Fast") for name in texts(CLASSES[0])} | {"PreTrainedTokenizer"}
print(
    json.dumps(
        {
            "architectures": sorted(_VLLM_MODELS),
            "model_types": sorted({*configuration_auto.CONFIG_MAPPING_NAMES, *_CONFIG_REGISTRY}),
            "classes": sorted({*texts(CLASSES), *tokenizers, *(f"{name}Fast" for name in tokenizers)}),
        },
        indent=1,
    )
)
