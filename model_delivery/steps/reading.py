"""Reads a step's JSON lines back: the other side of ``run``."""

import hashlib
import json
from collections.abc import Iterable

from model_delivery.base import Finding, Progress, Retryable, report
from model_delivery.steps.run import KINDS


def read(name: str, lines: Iterable[bytes]) -> str:
    """The result's JSON text of the step ``name``; progress is passed on.

    Raises the step's own findings as the Trouble they were, and Retryable when the result
    is missing, cut or changed on the way.
    """
    for line in lines:
        try:
            news = json.loads(line)
        except ValueError:
            continue
        match news:
            case {"progress": progress}:
                report(Progress(**progress))
            case {"findings": findings, "kind": kind}:
                raise KINDS[kind](*map(Finding.from_json, findings))
            case {"result": str(text), "length": length, "sha256": total}:
                if len(text) == length and hashlib.sha256(text.encode()).hexdigest() == total:
                    return text
    what, why = f"the {name} step ended without a result", "its process was killed or its output was cut"
    raise Retryable(Finding("step.no-result", what, why, "run again; its log says more"))
