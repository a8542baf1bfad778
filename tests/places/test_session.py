"""A session of a delivery: what its record says of the target."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_delivery.base.findings import Refused
from model_delivery.places.host.place import Host
from model_delivery.run.session import opened
from model_delivery.targets.deployment import DeploymentKey
from model_delivery.targets.process import Process, ProcessKey

HERE, THERE = ProcessKey(port=8000), DeploymentKey(namespace="there")


def test_a_target_changes_while_nothing_serves_and_not_before(tmp_path: Path) -> None:
    host = Host(tmp_path)
    with opened(host, "m", Process(), HERE, request="1") as session:
        session.write(serving="r1")
    with pytest.raises(Refused, match="`deliver down m` first"), opened(host, "m", Process(), THERE, request="2"):
        pass
    with opened(host, "m", Process(), HERE, request="3") as session:
        session.write(serving=None)
    with opened(host, "m", Process(), THERE, request="4") as session:
        session.write(serving="r2")
    with opened(host, "m", Process(), THERE, request="5") as session:
        assert session.record.target == THERE
