"""What ends a run's waits in a cluster, and what it costs the API server."""

from __future__ import annotations

import pytest

from model_delivery.flows.deliver import deliver
from model_delivery.places.cluster import pace
from tests.cluster.control.lab import Lab

NEVER = 3600.0


def test_every_wait_is_ended_by_what_is_watched(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """No look is due by the clock: what nothing tells of would last an hour."""
    monkeypatch.setattr(pace, "SCHEDULE", (NEVER,))
    assert deliver.fn(lab.spec())["result"] == "promoted"
    assert deliver.fn(lab.spec())["result"] == "promoted"
