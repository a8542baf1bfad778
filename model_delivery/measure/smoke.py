"""What a smoke test saw."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Check(BaseModel):
    """One check by name; ``detail`` says what was seen; seconds on this machine's
    clock.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    passed: bool
    detail: str
    seconds: float


class SmokeReport(BaseModel):
    """All checks, and what the model answered."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checks: tuple[Check, ...]
    answer: str

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)
