"""The rules as values: what one changes, the type checker knows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHANGE = """
from dataclasses import replace
from model_delivery.run.record import Candidate, Record

def change(record: Record, candidate: Candidate) -> object:
    return replace({what})
"""


def checked(what: str) -> str:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", "-c", CHANGE.format(what=what)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=250).stdout


@pytest.mark.parametrize("what", ["record, servng=None", "record, serving=1", 'candidate, fase="dark"'])
def test_a_misspelt_or_mistyped_field_of_a_change_is_a_type_error(what: str) -> None:
    assert "error:" in checked(what)


def test_a_right_one_is_none() -> None:
    assert "Success" in checked("record, serving=None")
