"""The NVIDIA GPUs of this machine, read from their driver by ``nvml.py``; and who holds
them.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import psutil
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from model_delivery.base import Finding, Permanent, short

SECONDS, MOST_BYTES = 30.0, 1 << 20  # without persistence mode the driver wakes each card first
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 .,_()/+@-]{0,95}")
UUID = re.compile(r"GPU-[0-9a-fA-F-]{8,64}")
NVML = Path(__file__).with_name("nvml.py")
FIX = "see what nvidia-smi says, and dmesg (Xid, NVRM); a driver that was updated needs its module loaded anew"

Bytes = Annotated[int, Field(ge=0, lt=1 << 50)]


def _plain(text: str) -> str:
    return "".join(c for c in short(text, 200) if c.isprintable())


class _Card(BaseModel):
    model_config = ConfigDict(strict=True)

    index: Annotated[int, Field(ge=0, lt=1024)]
    uuid: str
    name: str
    total: Bytes
    free: Bytes
    held: list[tuple[int, int | None]]
    fault: Annotated[str, AfterValidator(_plain)]


class _Told(BaseModel):
    model_config = ConfigDict(strict=True)

    cards: list[_Card]
    fault: Annotated[str, AfterValidator(_plain)]


@dataclass(frozen=True)
class Gpu:
    """``index`` as the driver counts, by PCI bus; ``total`` and ``free``: bytes as CUDA
    counts them, 0 where the driver does not say; ``held``: by which processes, None where
    it does not say how much. ``fault``: why it cannot be used.
    """

    index: int
    uuid: str
    name: str
    total: int
    free: int
    held: tuple[tuple[int, int | None], ...] = ()
    fault: str = ""


def read(seconds: float = SECONDS) -> tuple[Gpu, ...]:
    """None where there is no NVIDIA driver. Permanent where it errs, hangs or dies."""
    answer = _asked(seconds)
    if answer is None:
        raise Permanent(_broken(f"it did not answer for {seconds:.0f} s"))
    try:
        told = _Told.model_validate_json(answer)
    except ValidationError:
        raise Permanent(_broken("it ended the process that asked it" if not answer else "its answer is none")) from None
    if told.fault:
        raise Permanent(_broken(told.fault))
    return tuple(map(_checked, told.cards))


def _asked(seconds: float) -> bytes | None:
    """None after too long. Whoever hangs in the driver may outlive its SIGKILL, and is
    not waited for.
    """
    child = subprocess.Popen(
        [sys.executable, "-I", str(NVML)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    deadline, answer = time.monotonic() + seconds, b""
    if child.stdout is None:
        return None
    with child.stdout as out:
        while (left := deadline - time.monotonic()) > 0 and len(answer) < MOST_BYTES:
            if select.select([out], [], [], left)[0]:
                piece = os.read(out.fileno(), 1 << 16)
                if not piece:
                    with suppress(subprocess.TimeoutExpired):
                        child.wait(1)
                    return answer
                answer += piece
    child.kill()
    return None


def _checked(card: _Card) -> Gpu:
    name = card.name if NAME.fullmatch(card.name) else "NVIDIA GPU"
    uuid = card.uuid if UUID.fullmatch(card.uuid) else ""
    held = ((pid, size if size is None or 0 <= size <= card.total else None) for pid, size in card.held if pid)
    fault = card.fault or ("it says that more is free than there is" if card.free > card.total else "")
    return Gpu(card.index, uuid, name, card.total, min(card.free, card.total), tuple(held), fault)


def _broken(why: str) -> Finding:
    return Finding("host.gpu-driver", "the NVIDIA driver of this machine does not tell of its GPUs", why, FIX)


def process_name(pid: int) -> str:
    """Empty where there is no such process, or where it has ended."""
    with suppress(psutil.Error, OSError, ValueError, ArithmeticError):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return _plain(process.name())[:40] or "?"
    return ""
