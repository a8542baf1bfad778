"""What the command says, asked in this process."""

from __future__ import annotations

import json
import re
from typing import Any

from click.testing import CliRunner

from model_delivery.base import Trouble
from model_delivery.cli.main import deliver

CODE = r"(?m) \[[a-z0-9.-]+\]$"


def says(verb: str, *words: str) -> Any:
    """The verb's JSON; or its exit code and what it wrote to standard error, without the
    findings' codes, which the old code did not have. It told what would be done as if it
    had been done.
    """
    done = CliRunner().invoke(deliver, [verb, *words, "--json"])
    if done.exception is None:
        return json.loads(done.stdout.replace(" would be ", " "))
    if not isinstance(done.exception, Trouble):
        raise done.exception
    told = "".join(f"✗ {re.sub(CODE, '', str(finding))}\n" for finding in done.exception.findings)
    return {"exit_code": done.exception.exit_code, "stderr": told}


def known(now: Any, then: Any) -> Any:
    """``now`` without the fields that the old code did not have."""
    if isinstance(then, dict) and isinstance(now, dict):
        return {key: known(value, then[key]) for key, value in now.items() if key in then}
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        return [known(*pair) for pair in zip(now, then, strict=True)]
    return now
