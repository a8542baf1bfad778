"""One Prefect server and one worker for all tests of the flows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts import prefect_server as parts
from tests.parts.hubs.huggingface import HuggingFaceHub, running_hub
from tests.parts.tiny_model import tiny_model


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[parts.Server]:
    with parts.running_server(tmp_path_factory.mktemp("prefect")) as server:
        yield server


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state folder of the worker's runs."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HuggingFaceHub]:
    """The one that the worker's runs ask."""
    with running_hub(tiny_model(tmp_path_factory.mktemp("hub"))) as made:
        yield made


@pytest.fixture(scope="session")
def worker(server: parts.Server, home: Path, hub: HuggingFaceHub) -> Iterator[int]:
    with parts.running_worker(server, {"MODEL_DELIVERY_HOME": str(home), "HF_ENDPOINT": hub.url}) as pid:
        yield pid
