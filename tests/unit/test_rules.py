"""The rules as values: what one changes, the type checker knows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHANGE = """
from dataclasses import replace
from model_delivery.run.record import Candidate, Record

def change(record: Record, candidate: Candidate) -> object:
    return replace({what})
"""


def checked(folder: Path, what: str) -> str:
    config = folder / "mypy.ini"
    config.write_text("[mypy]\nstrict = True\nplugins = pydantic.mypy\nfollow_imports = silent\n")
    line = CHANGE.format(what=what)
    options = ["--config-file", str(config), "--cache-dir", str(folder / "cache")]
    command = [sys.executable, "-m", "mypy", *options, "-c", line]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=250)
    return done.stdout + done.stderr


def test_a_misspelt_or_mistyped_field_of_a_change_is_a_type_error(tmp_path: Path) -> None:
    assert "Success" in checked(tmp_path, "record, serving=None")
    for wrong in ("record, servng=None", "record, serving=1", 'candidate, fase="dark"'):
        assert "error: " in checked(tmp_path, wrong), wrong
