"""A session of a delivery: what its record says of the target."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from model_delivery.base import Refused
from model_delivery.places.host.place import Host
from model_delivery.run.session import opened
from model_delivery.targets import TargetKey
from tests.parts.keys import key

HERE, THERE = key(kind="process", port=8000), key(kind="deployment", namespace="there")


def test_a_target_changes_while_nothing_serves_and_not_before(tmp_path: Path) -> None:
    serve(tmp_path, HERE, "r1")
    with pytest.raises(Refused, match="`deliver down m` first"):
        serve(tmp_path, THERE, None)
    serve(tmp_path, HERE, None)
    serve(tmp_path, THERE, "r2")
    with opened(Host(tmp_path), "m", THERE, request="5") as session:
        assert session.record.target == THERE


def serve(home: Path, where: TargetKey, release: str | None) -> None:
    with opened(Host(home), "m", where, request="1") as session:
        session.write(replace(session.record, serving=release))
