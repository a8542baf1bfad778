"""The fetch as a step: bytes are moved where they will lie."""

from __future__ import annotations

from pathlib import Path

from model_delivery.base import Part
from model_delivery.models.manifest import model_folder
from model_delivery.models.sources import Model
from model_delivery.models.store.commit import Fetched, fetch
from model_delivery.steps import Step
from model_delivery.values import Snapshot


class FetchInput(Part):
    """``root`` is the store's folder; tokens are read here, where they are needed, by
    their names in ``model``.
    """

    model: Model
    snapshot: Snapshot
    root: str


def run(given: FetchInput) -> Fetched:
    """Fetch and verify; what is there and whole is adopted."""
    return fetch(given.model, given.snapshot, model_folder(Path(given.root), given.snapshot))


STEP = Step("fetch", FetchInput, Fetched, run)
