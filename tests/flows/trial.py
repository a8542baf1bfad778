"""A flow that uses what the real ones use of ``tasks``: importable by a worker as
``tests.flows.trial.trial``.
"""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path

from prefect import flow

from model_delivery.base import Finding, GateFailed, Permanent, Progress, Retryable, Secret, report
from model_delivery.tasks import artifacts
from model_delivery.tasks.step import run_id, step

WIDTH, HEIGHT = 320, 200
KEY = "sk-0123456789-of-the-trial"
known: ContextVar[str] = ContextVar("known", default="nothing")


def png() -> bytes:
    """A blue picture of 320 × 200 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + b"\x20\x40\xc0" * WIDTH) * HEIGHT
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def count(file: Path) -> int:
    number = int(file.read_text()) + 1 if file.exists() else 1
    file.write_text(str(number))
    return number


@step("look")
def look(secret_looking: str) -> tuple[str, str | None]:
    """What a task sees: the context variable, and the id of its run."""
    for done in range(0, 101, 10):
        report(Progress("look", f"{len(secret_looking)} letters", done=done, total=100, unit="B"))
    return known.get(), run_id()


@step("stubborn")
def stubborn(file: Path) -> int:
    number = count(file)
    if number == 1:
        raise Retryable(Finding("todo", "the hub is busy"))
    return number


@step("hopeless")
def hopeless(file: Path) -> None:
    count(file)
    raise Permanent(Finding("todo", "the disk is full"))


@step("broken")
def broken() -> None:
    """As a library's error quotes what a server said."""
    raise LookupError(f"wrong key {Secret(KEY).reveal()}")


@flow(name="trial", flow_run_name="Trial.1", persist_result=False)
def trial(folder: str) -> None:
    """Ends in a GateFailed after everything else went well."""
    here = Path(folder)
    known.set("what the flow set")
    with artifacts.progress_sink():
        seen, run = look("parameter-of-a-task")
        (here / "seen").write_text(f"{seen}\n{run}\n{run_id()}\n{stubborn(here / 'stubborn')}")
        artifacts.publish_plan("# The plan\n\n1. look", ())
        artifacts.publish_verdict("| figure | bound |\n|---|---|\n| 812 ms | 500 ms |")
        artifacts.publish_picture(png(), "Requests in a minute")
        with suppress(Permanent):
            broken()
        try:
            hopeless(here / "hopeless")
        except Permanent as bad:
            raise GateFailed(
                Finding(
                    "todo", "ttft p95 was 812 ms, its bound is 500 ms", evidence=tuple(f.what for f in bad.findings)
                )
            ) from bad
