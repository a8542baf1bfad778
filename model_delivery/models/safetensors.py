"""Is a file whole, as safetensors? Its header says how long it must be."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from model_delivery.base import Finding, short

MAX_HEADER = 100_000_000
AGAIN = "fetch it again"
BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2}
BYTES |= {"I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8}  # others, of half bytes, are let be


def check_header(path: Path, name: str) -> Finding | None:
    """What is wrong with a safetensors file (called ``name``).

    None when its header is sound and covers the file exactly, and for a file of another
    name.

    The format: 8 bytes little-endian length, that much JSON, then the tensors' bytes
    without a gap.
    """
    if not name.endswith(".safetensors"):
        return None
    size = path.stat().st_size
    broken = f"{name} is no safetensors file"
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else MAX_HEADER + 1
        if length > min(MAX_HEADER, size):
            why = f"its header would be {length} bytes long, the file has {size}"
            return Finding("source.broken-weights", broken, why, AGAIN)
        try:
            header = json.loads(file.read(length))
            tensors = {key: tensor for key, tensor in header.items() if key != "__metadata__"}
            spans = sorted((int(begin), int(end)) for begin, end in (one["data_offsets"] for one in tensors.values()))
            odd = [key for key, tensor in tensors.items() if not _fills(tensor)]
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
            return Finding("source.broken-weights", broken, "its header cannot be read", AGAIN)
    ends = [0, *(end for _, end in spans)]
    if any(begin != before or end < begin for before, (begin, end) in zip(ends, spans, strict=False)):
        return Finding("source.broken-weights", broken, "its tensors overlap, or leave a gap", AGAIN)
    if odd:
        why = f"the shape of tensor {short(odd[0], 100)} does not fill its bytes"
        return Finding("source.broken-weights", broken, why, AGAIN)
    if not ends[-1]:
        return Finding("source.broken-weights", f"{name} holds no tensor", "there is nothing in it to load", AGAIN)
    expected = 8 + length + ends[-1]
    if expected == size:
        return None
    what = f"{name} is {'cut short' if size < expected else 'too long'}"
    return Finding("source.broken-weights", what, f"it has {size} bytes, its header says {expected}", AGAIN)


def _fills(tensor: dict[str, Any]) -> bool:
    begin, end = tensor["data_offsets"]
    size, shape = BYTES.get(tensor["dtype"]), [int(length) for length in tensor["shape"]]
    if size is None or 0 in shape:
        return size is None or end == begin
    for length in shape:
        if (size := size * length) > end - begin:  # a hostile shape's product may be of any length
            return False
    return bool(size == end - begin)


def tensors_in(path: Path) -> set[str]:
    """The names of the tensors in a file whose header is sound."""
    with path.open("rb") as file:
        return {*json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))} - {"__metadata__"}
