"""Prefect's entry point ``prefect.collections``: a worker hands its environment to the
runs that it starts.
"""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = str(Path(__file__).parent)
paths = list(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
if FOLDER not in paths:
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, FOLDER])
