"""Random weights for the Llama of DIR/config.json, as real safetensors files with an
index: ``weights.py DIR``. Written once; on a GPU where there is one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

SHARD_BYTES = 5_000_000_000
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Named = dict[str, torch.Tensor]


def shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """By the names that transformers gives them."""
    wide, inner, entries = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head = wide // config["num_attention_heads"]
    narrow = head * config["num_key_value_heads"]
    yield "model.embed_tokens.weight", (entries, wide)
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        for name, rows in (("q", wide), ("k", narrow), ("v", narrow)):
            yield f"{layer}.self_attn.{name}_proj.weight", (rows, wide)
        yield f"{layer}.self_attn.o_proj.weight", (wide, wide)
        for name, shape in (("gate", (inner, wide)), ("up", (inner, wide)), ("down", (wide, inner))):
            yield f"{layer}.mlp.{name}_proj.weight", shape
        yield f"{layer}.input_layernorm.weight", (wide,)
        yield f"{layer}.post_attention_layernorm.weight", (wide,)
    yield "model.norm.weight", (wide,)
    yield "lm_head.weight", (entries, wide)


def made(shape: tuple[int, ...]) -> torch.Tensor:
    tensor = torch.empty(shape, dtype=torch.bfloat16, device=DEVICE)
    return (tensor.fill_(1.0) if len(shape) == 1 else tensor.normal_(0.0, 0.02)).cpu()


def shards(config: dict[str, Any]) -> Iterator[Named]:
    shard, size = Named(), 0
    for name, shape in shapes(config):
        tensor = made(shape)
        if shard and size + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard


def main() -> None:
    folder = Path(sys.argv[1])
    if (folder / "model.safetensors.index.json").exists():
        return
    torch.manual_seed(1)
    weights, total, written = dict[str, int](), 0, list[Path]()
    for number, shard in enumerate(shards(json.loads((folder / "config.json").read_text(encoding="utf-8"))), 1):
        written.append(folder / f"shard-{number}")
        save_file(shard, written[-1], metadata={"format": "pt"})
        weights |= dict.fromkeys(shard, number)
        total += sum(tensor.nbytes for tensor in shard.values())
    names = {number: f"model-{number:05}-of-{len(written):05}.safetensors" for number in range(1, len(written) + 1)}
    for number, path in enumerate(written, 1):
        path.rename(folder / names[number])
    index = {"metadata": {"total_size": total}, "weight_map": {name: names[number] for name, number in weights.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    print(f"{total:,} bytes in {len(written)} files")


if __name__ == "__main__":
    main()
