"""What the tests of the fetch do again and again: ask for a model as a run does, and look
at what lies on the disk afterwards.
"""

from __future__ import annotations

import stat
from pathlib import Path

from model_delivery.models.manifest import MANIFEST
from model_delivery.models.sources import Model
from model_delivery.models.store.commit import Fetched
from model_delivery.models.verify import verify
from model_delivery.run.resolve import resolve_model
from model_delivery.steps.fetch import FetchInput
from model_delivery.values import Snapshot

WEIGHTS = "model.safetensors"


def given(root: Path, model: Model, last: Snapshot | None = None) -> FetchInput:
    """The step's input, as the flow makes it."""
    return FetchInput(model=model, snapshot=resolve_model(model, last), root=str(root))


def models(root: Path) -> list[Path]:
    """The folders that an engine would be given: those with a manifest."""
    return [path.parent for path in root.rglob(MANIFEST)]


def whole(done: Fetched, files: dict[str, bytes]) -> None:
    """The folder holds these files, all of them readable for everybody, and nothing
    else.
    """
    folder = Path(done.path)
    assert verify(folder, deep=True) == []
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found.pop(MANIFEST)
    assert found == files
    assert {stat.S_IMODE((folder / name).stat().st_mode) for name in (*found, MANIFEST)} == {0o644}
