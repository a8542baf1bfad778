"""What a smoke test saw."""

from __future__ import annotations

from model_delivery.base import Part


class Check(Part):
    """One check by name; ``detail`` says what was seen; seconds on this machine's
    clock.
    """

    name: str
    passed: bool
    detail: str
    seconds: float


class SmokeReport(Part):
    """All checks, and what the model answered."""

    checks: tuple[Check, ...]
    answer: str

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)
