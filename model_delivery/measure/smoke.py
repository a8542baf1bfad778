"""What a smoke test saw."""

from __future__ import annotations

from pydantic import Field

from model_delivery.base import Part


class Check(Part):
    """One check by name; ``detail`` says what was seen; seconds on this machine's
    clock. ``replica``: the one that it is of, by its pod's name, where one was asked by
    itself; empty: whoever answered at the address.
    """

    name: str
    passed: bool
    detail: str
    seconds: float
    replica: str = Field("", exclude_if=lambda name: not name)


class SmokeReport(Part):
    """All checks, and what the model answered."""

    checks: tuple[Check, ...]
    answer: str

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)
