"""Where the state lies, and the data that comes with the package."""

from __future__ import annotations

import os
from pathlib import Path


def default_home() -> Path:
    """``$MODEL_DELIVERY_HOME``, else the platform's state folder."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(os.environ.get("MODEL_DELIVERY_HOME") or Path(state) / "model-delivery").absolute()


def packaged(folder: str) -> Path:
    """A folder of data inside the package: ``manifests`` or ``engines``; in a checkout it
    is a link to the one at the top.
    """
    return Path(__file__).parent.parent / folder
