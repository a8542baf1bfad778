"""A model folder that is whole (configuration, tokenizer, valid safetensors) and tiny: for engines that do not compute."""

from __future__ import annotations

import json
import struct
from pathlib import Path


def tiny_model(folder: Path) -> Path:
    """Write it to ``folder`` and return that."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 2048})
    )
    (folder / "tokenizer.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    return folder
