"""The fetch as a step: bytes are moved where they will lie."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from delivery.secrets import read_secret
from delivery.sources import Snapshot, open_source
from delivery.spec import Model
from delivery.steps import Step
from delivery.store.commit import Fetched, fetch


class FetchInput(BaseModel):
    """``root`` is the store's folder; the token is read here, where it is needed, by its name in ``model``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Model
    snapshot: Snapshot
    root: str


def run(given: FetchInput) -> Fetched:
    """Fetch and verify; what is there and whole is adopted."""
    ref = getattr(given.model, "token", None)
    return fetch(open_source(given.model), given.snapshot, Path(given.root), None if ref is None else read_secret(ref), given.model.allow)


STEP = Step("fetch", FetchInput, Fetched, run)
