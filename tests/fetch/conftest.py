from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import close_session


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of the test's own, and nothing of the machine's settings."""
    monkeypatch.setenv("MODEL_DELIVERY_HOME", str(tmp_path / "home"))
    for name in (
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "HF_TOKEN",
        "MODELSCOPE_API_TOKEN",
    ):
        monkeypatch.delenv(name, raising=False)
    close_session()  # it keeps the proxy and the authorities of the test before
    return tmp_path / "home"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"
