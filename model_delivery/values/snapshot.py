"""A model as of one commit, as a value."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from model_delivery.base import Part

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
GitId = Annotated[str, Field(pattern="^([0-9a-f]{40}|[0-9a-f]{64})$")]
FolderName = Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=255)]


class File(Part):
    """One file of a model: its path inside the repository, its size in bytes, and the
    hash that its source states.
    """

    path: str
    size: Annotated[int, Field(ge=0, lt=1 << 63)]
    sha256: Sha256 | None = None
    git_sha1: GitId | None = None


class Snapshot(Part):
    """A model as of one commit; ``key`` names the repository within its source (and in
    the store). All three become folders: none can lead out of the store.
    """

    source: FolderName
    key: FolderName
    commit: GitId
    files: tuple[File, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)
