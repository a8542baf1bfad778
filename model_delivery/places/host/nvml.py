"""Runs as a script: asks the NVIDIA driver for its GPUs (NVML), in a process of its own,
since a driver may hang or die. Prints one JSON object: cards, and a fault where the
driver has one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pynvml as nvml

NONE_HERE = (nvml.NVML_ERROR_LIBRARY_NOT_FOUND, nvml.NVML_ERROR_DRIVER_NOT_LOADED)
UNTOLD = (nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND)
MOST_CARDS, MOST_PROCESSES = 64, 256


def card(index: int) -> dict[str, Any]:
    told: dict[str, Any] = {"index": index, "uuid": "", "name": "", "total": 0, "free": 0, "held": [], "fault": ""}
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        told["uuid"], told["name"] = (_text(ask, handle) for ask in (nvml.nvmlDeviceGetUUID, nvml.nvmlDeviceGetName))
        told["total"], told["free"] = _memory(handle)
        told["held"] = _held(handle)
    except nvml.NVMLError as error:
        told["fault"] = str(error)
    return told


def _text(ask: Callable[[Any], str], handle: Any) -> str:
    with suppress(UnicodeDecodeError):
        return ask(handle)
    return ""


def _memory(handle: Any) -> tuple[int, int]:
    """As CUDA counts them: without what the driver reserves. 0 of a card that shares the
    host's.
    """
    for version in (nvml.nvmlMemory_v2, None):
        try:
            seen = nvml.nvmlDeviceGetMemoryInfo(handle, version)
            return seen.total - getattr(seen, "reserved", 0), seen.free
        except nvml.NVMLError as error:
            if error.value not in UNTOLD:
                raise
    return 0, 0


def _held(handle: Any) -> list[tuple[int, int | None]]:
    """Each process once: one that computes and draws is told of twice."""
    found = dict[int, int | None]()
    for ask in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
        try:
            found |= {one.pid: one.usedGpuMemory for one in ask(handle)}
        except nvml.NVMLError as error:
            if error.value not in UNTOLD:
                raise
    return sorted(found.items(), key=lambda one: one[1] or 0)[-MOST_PROCESSES:]


def main() -> None:
    """The driver's own words, and its end, are not waited for."""
    out, told = os.dup(1), dict[str, Any](cards=[], fault="")
    os.dup2(2, 1)
    try:
        nvml.nvmlInit()
        told["cards"] = [card(index) for index in range(min(nvml.nvmlDeviceGetCount(), MOST_CARDS))]
    except nvml.NVMLError as error:
        told["fault"] = "" if error.value in NONE_HERE else str(error)
    with os.fdopen(out, "w") as file:
        json.dump(told, file)
    os._exit(0)


if __name__ == "__main__":
    main()
