"""A model as of one commit, as a value."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class File(BaseModel):
    """One file of a model: its path inside the repository, its size in bytes, and the
    hash that its source states.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None


class Snapshot(BaseModel):
    """A model as of one commit; ``key`` names the repository within its source (and in
    the store).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    key: str
    commit: str
    files: tuple[File, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)
