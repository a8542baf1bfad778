"""One Prefect server and one worker for most tests of the flows; a second server for what
needs one that is guarded, or killed.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.parts import postgresql
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


@dataclass(frozen=True)
class Second:
    """It demands the string ``auth``, and has ``database`` behind."""

    mortal: parts.Mortal
    auth: str
    database: postgresql.PostgreSQL | None

    @property
    def server(self) -> parts.Server:
        return self.mortal.server

    def dump(self) -> bytes:
        """Every column of every row of every table."""
        if self.database is not None:
            return self.database.dump()
        (file,) = self.server.home.glob("*.db")
        with closing(sqlite3.connect(file)) as open_file:
            return "\n".join(open_file.iterdump()).encode()


@pytest.fixture(scope="session")
def second(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Second]:
    """On PostgreSQL where that is installed (what is about PostgreSQL is marked so)."""
    auth, programs = f"admin:{secrets.token_hex(16)}", postgresql.programs()
    settings = {parts.AUTH: auth}
    with ExitStack() as stack:
        database = stack.enter_context(postgresql.running_postgresql(programs)) if programs else None
        if database is not None:
            settings["PREFECT_API_DATABASE_CONNECTION_URL"] = database.url
        mortal = stack.enter_context(parts.running_mortal(tmp_path_factory.mktemp("second"), settings))
        yield Second(mortal, auth, database)
