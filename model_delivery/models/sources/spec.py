"""What a spec says of a model, whatever its source; each source has a room of its own
beside this module.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, StringConstraints, ValidationError

from model_delivery.base import Finding, Part, Refused, Secret, SecretRef, Text, problems, read_secret
from model_delivery.models.listing import hashed, pinned, select, wanted
from model_delivery.models.shards import one_set
from model_delivery.values import File, Snapshot, digest

if TYPE_CHECKING:
    Remotes = str  # the names of the sources that can be a fallback: a Literal, once all rooms are known

Revision = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=4096, pattern=r"^[^\x00]*$")]
Sum = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Permission = Literal["pickle", "remote-code"]
INCLUDE = ("*.json", "*.safetensors", "*.jinja", "tokenizer*", "*.model", "*.txt", "*.tiktoken")
EXCLUDE = ("original/*", "consolidated*", "onnx/*")


@dataclass(frozen=True)
class Remote:
    """Bytes behind HTTP, ranges allowed; the headers go to this URL's scheme, host and
    port only.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def moved(self, url: str) -> Remote:
        """The same bytes at ``url``, where a redirect led to."""
        return Remote(url, self.headers if origin(url) == origin(self.url) else {})


def origin(url: str) -> tuple[str, str | None, int | None]:
    """Whom a secret for ``url`` is for: scheme, host and port."""
    at = urlsplit(url)
    return at.scheme, at.hostname, at.port or {"http": 80, "https": 443}.get(at.scheme)


def address_fault(address: str) -> str:
    """Why an address must not be shown or asked: it carries more than where that is;
    empty when it may.
    """
    try:
        at = urlsplit(address)
        web = at.scheme in ("http", "https") and (at.username is not None or at.query or at.fragment or not at.hostname)
        more = web or at.password is not None or at.port == 0
    except ValueError:
        more = True
    return "must be an address without user, password or query: name the token in model.token" if more else ""


def repo_fault(repo: str) -> str:
    """Why a repository cannot be called so; empty when it may."""
    return "must not begin with a dash" if repo.startswith("-") else address_fault(repo)


@dataclass(frozen=True)
class Local:
    """Bytes in a file of this machine."""

    path: Path


class ModelSpec(Part):
    """What every source has. ``files``: fields that name a file or folder, made absolute
    when a spec is loaded.

    ``texts``: fields that name a file whose content takes their place then.
    ``endpoint_variable`` is what a step's Job must be passed. ``example``: an address on
    the command line.
    """

    model_config = ConfigDict(defer_build=True)  # fallbacks are not known before all rooms are

    include: tuple[Text, ...] = INCLUDE
    exclude: tuple[Text, ...] = EXCLUDE
    allow: tuple[Permission, ...] = ()

    files: ClassVar[tuple[str, ...]] = ()
    texts: ClassVar[tuple[str, ...]] = ()
    endpoint_variable: ClassVar[str | None] = None
    in_cluster: ClassVar[bool] = True
    example: ClassVar[str]

    if TYPE_CHECKING:  # fields in most rooms

        @property
        def source(self) -> str: ...
        @property
        def repo(self) -> str: ...
        @property
        def revision(self) -> str: ...

    @classmethod
    @abstractmethod
    def from_address(cls, text: str) -> dict[str, Any]:
        """The fields that the command line's ``SOURCE:text`` stands for."""

    @property
    def name(self) -> str:
        """What people and manifests call it: ``huggingface org/model``."""
        return f"{self.source} {self.repo}"

    @property
    def key(self) -> str:
        """``Snapshot.key`` of what it resolves to."""
        return digest(self.repo, 16)

    @abstractmethod
    def resolve(self) -> Snapshot:
        """List first: the commit and its files, names and kinds checked. Retryable or
        Refused otherwise. Tokens are read when they are needed.
        """

    @abstractmethod
    def locate(self, commit: str, file: File, scratch: Path) -> Remote | Local:
        """Where a file's bytes are, as of now; what must be unpacked first goes to
        ``scratch``, a folder of this fetch's own.
        """

    @abstractmethod
    def read(self, commit: str, file: File, scratch: Path) -> bytes:
        """All bytes of a small file."""

    def faults(self) -> Iterable[tuple[tuple[str | int, ...], str]]:
        """What a new spec must not say, by its place below ``model``."""
        return ()

    def fallbacks(self) -> tuple[RemoteModel, ...]:
        """Who is asked, in turn, for what this source does not give."""
        return ()

    def wanted(self, paths: Iterable[str]) -> list[str]:
        return wanted(paths, self.include, self.exclude, self.allow)

    def chosen(self, listed: Iterable[File], commit: str, scratch: Path) -> tuple[File, ...]:
        """The wanted files, one set of weights. Refused names every fault of the list;
        ``commit`` and ``scratch`` are ``read``'s.
        """
        there = list(listed)
        files = select(there, self.include, self.exclude, self.allow)
        return one_set(files, {file.path for file in there}, lambda file: self.read(commit, file, scratch))

    def snapshot(self, files: tuple[File, ...], commit: str = "") -> Snapshot:
        """Where there are no commits, the digest of the list stands for one."""
        commit = commit or digest([[f.path, f.size, f.sha256] for f in files], 40)
        try:
            return Snapshot(source=self.source, key=self.key, commit=commit, files=files)
        except ValidationError as error:
            what, fix = f"{self.name} names no commit", "do not trust it: it is no hub, or a broken one"
            raise Refused(Finding("source.no-commit", what, "; ".join(problems(error)), fix)) from None


class Fallback(Part):
    """Another source of the same files; ``model.token`` is never sent to it."""

    model_config = ConfigDict(defer_build=True)

    source: Remotes
    repo: Text
    revision: Revision
    token: SecretRef | None = None


class RemoteModel(ModelSpec):
    """A source that can be a fallback, and has fallbacks."""

    repo: Text
    token: SecretRef | None = None
    fallback: tuple[Fallback, ...] = ()
    pins: dict[Text, Sum] = Field(default_factory=dict)

    files: ClassVar[tuple[str, ...]] = ("token.file", "fallback.*.token.file")
    address: ClassVar[str] = r"([^@]+)@(.+)"

    @classmethod
    def from_address(cls, text: str) -> dict[str, Any]:
        """``REPO[@REVISION]``."""
        parts = re.fullmatch(cls.address, text)
        repo, revision = parts.groups() if parts else (text, cls.model_fields["revision"].default)
        return {"repo": repo, "revision": revision}

    def faults(self) -> Iterable[tuple[tuple[str | int, ...], str]]:
        repos = [(("repo",), self.repo), *((("fallback", n, "repo"), f.repo) for n, f in enumerate(self.fallback))]
        return ((at, why) for at, repo in repos if (why := repo_fault(repo)))

    @property
    def secret(self) -> Secret | None:
        return None if self.token is None else read_secret(self.token)

    def fallbacks(self) -> tuple[RemoteModel, ...]:
        """Each entry of ``fallback`` as a model of its own, with the files and
        permissions of this one.
        """
        ours = self.model_dump(include={"include", "exclude", "allow", "pins"})
        return tuple(REMOTES[other.source].model_validate(ours | other.model_dump()) for other in self.fallback)

    def chosen(self, listed: Iterable[File], commit: str, scratch: Path) -> tuple[File, ...]:
        return hashed(super().chosen(pinned(listed, self.pins), commit, scratch))


REMOTES: dict[str, type[RemoteModel]] = {}
