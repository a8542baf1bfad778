"""Says how much memory the tier took."""

from __future__ import annotations

import resource

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    largest = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    terminalreporter.write_line(f"the largest process had {largest >> 10} MiB at once")
