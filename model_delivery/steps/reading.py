"""Reads a step's JSON lines back: the other side of ``run``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from model_delivery.base.findings import Finding, Retryable
from model_delivery.base.progress import Progress, report
from model_delivery.steps.run import KINDS


def read(name: str, lines: Iterable[bytes]) -> str:
    """The result's JSON text of the step ``name``; progress is passed on.

    Raises the step's own findings as the Trouble they were, and Retryable when the result is missing, cut or changed on the way.
    """
    for line in lines:
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if not isinstance(said, dict):
            continue
        if "progress" in said:
            report(Progress(**said["progress"]))
        elif "findings" in said:
            raise KINDS[said["kind"]](*(Finding.from_json(f) for f in said["findings"]))
        elif "result" in said:
            text: str = said["result"]
            if len(text) == said["length"] and hashlib.sha256(text.encode()).hexdigest() == said["sha256"]:
                return text
    raise Retryable(
        Finding(
            "todo",
            f"the {name} step ended without a result",
            "its process was killed or its output was cut",
            "run again; its log says more",
        )
    )
