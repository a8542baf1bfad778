"""Parts that unit tests share: a tiny model's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parts.tiny_model import tiny_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))
