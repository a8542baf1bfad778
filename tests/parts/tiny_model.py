"""A model folder that is whole (configuration, tokenizer, valid safetensors) and tiny:
for engines that do not compute.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path


def tiny_model(folder: Path, size: int = 16) -> Path:
    """Write it to ``folder`` and return that; its weights are ``size`` bytes (a multiple
    of four).
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 2048})
    )
    (folder / "tokenizer.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    return folder
