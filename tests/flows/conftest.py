"""One Prefect server and one worker for all tests of the flows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts import prefect_server as parts


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[parts.Server]:
    with parts.running_server(tmp_path_factory.mktemp("prefect")) as server:
        yield server


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state folder of the worker's runs."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def worker(server: parts.Server, home: Path) -> Iterator[int]:
    with parts.running_worker(server, {"MODEL_DELIVERY_HOME": str(home)}) as pid:
        yield pid
