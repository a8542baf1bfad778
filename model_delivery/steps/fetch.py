"""The fetch as a step: bytes are moved where they will lie."""

from __future__ import annotations

from pathlib import Path

from model_delivery.base import Part, default_home
from model_delivery.models.manifest import model_folder
from model_delivery.models.sources import Model
from model_delivery.models.store.commit import Fetched, fetch
from model_delivery.models.store.garbage import user_of
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
    folder = model_folder(Path(given.root), given.snapshot)
    return fetch(given.model, given.snapshot, folder, user=user_of(default_home()))


STEP = Step("fetch", FetchInput, Fetched, run)
