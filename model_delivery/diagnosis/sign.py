"""A row of a table: by which words a fault is known, what they mean, what to do."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Sign:
    """``what`` and ``fix`` may use the groups of ``pattern`` (``\\1``). ``retryable``:
    starting again, as it stands, may help.
    """

    code: str
    pattern: re.Pattern[str]
    what: str
    fix: str
    retryable: bool = False


def sign(code: str, pattern: str, what: str, fix: str, *, retryable: bool = False) -> Sign:
    return Sign(code, re.compile(pattern), what, fix, retryable)
