"""Where the state lies."""

from __future__ import annotations

import os
from pathlib import Path


def default_home() -> Path:
    """``$MODEL_DELIVERY_HOME``, else the platform's state folder."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(os.environ.get("MODEL_DELIVERY_HOME") or Path(state) / "model-delivery").absolute()
