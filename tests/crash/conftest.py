"""A lab for each test; its model and its engine are made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.lab import Lab
from tests.parts.ports import free_port
from tests.parts.timing_engine import engine_folder
from tests.parts.tiny_model import tiny_model


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("parts")
    return tiny_model(folder / "model"), engine_folder(folder)


@pytest.fixture
def lab(tmp_path: Path, parts: tuple[Path, Path]) -> Iterator[Lab]:
    made = Lab(home=tmp_path / "home", model=parts[0], engine=parts[1], port=free_port())
    yield made
    made.stop()
