"""Is a file whole, as safetensors? Its header says how long it must be."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from model_delivery.base.findings import Finding

MAX_HEADER = 100_000_000
POINTER = b"version https://git-lfs"


def check_header(path: Path, name: str) -> Finding | None:
    """What is wrong with a safetensors file (called ``name``), None when its header is sound and covers the file exactly.

    The format: 8 bytes little-endian length, that much JSON, then the tensors' bytes without a gap.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(POINTER))
        if start == POINTER:
            return Finding(
                "todo",
                f"{name} is a git-LFS pointer",
                "the real file was never fetched",
                "run `git lfs pull` in that folder",
            )
        file.seek(0)
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else MAX_HEADER + 1
        if length > min(MAX_HEADER, size):
            return Finding(
                "todo",
                f"{name} is no safetensors file",
                f"its header would be {length} bytes long, the file has {size}",
                "fetch it again",
            )
        try:
            header = json.loads(file.read(length))
            ends = [int(tensor["data_offsets"][1]) for name, tensor in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return Finding("todo", f"{name} is no safetensors file", "its header cannot be read", "fetch it again")
    expected = 8 + length + max(ends, default=0)
    if expected != size:
        return Finding(
            "todo",
            f"{name} is cut short" if size < expected else f"{name} is too long",
            f"it has {size} bytes, its header says {expected}",
            "fetch it again",
        )
    return None
