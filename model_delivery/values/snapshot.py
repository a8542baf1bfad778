"""A model as of one commit, as a value."""

from __future__ import annotations

from model_delivery.base import Part


class File(Part):
    """One file of a model: its path inside the repository, its size in bytes, and the
    hash that its source states.
    """

    path: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None


class Snapshot(Part):
    """A model as of one commit; ``key`` names the repository within its source (and in
    the store).
    """

    source: str
    key: str
    commit: str
    files: tuple[File, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)
