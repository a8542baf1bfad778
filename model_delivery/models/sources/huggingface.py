"""The Hugging Face Hub, or whatever ``HF_ENDPOINT`` names: its API lists, the store moves
the bytes.

Its library is slow to import: only a source that is asked imports it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal
from urllib.parse import quote

from model_delivery.base import Finding, Permanent, Trouble, bearer, within
from model_delivery.models.sources.http import LONGEST_LIST, HubModel, NotGiven, bounded, http_trouble
from model_delivery.models.sources.spec import Remote, Revision, origin
from model_delivery.values import File, Snapshot

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import HfApi


class HuggingFaceModel(HubModel):
    """A repository of the Hugging Face Hub (or of ``HF_ENDPOINT``)."""

    source: Literal["huggingface"]
    revision: Revision = "main"

    home: ClassVar[str] = "https://huggingface.co"
    endpoint_variable: ClassVar[str] = "HF_ENDPOINT"

    def resolve(self) -> Snapshot:
        """Retryable when the hub cannot be reached or is overloaded; a "no" is
        Refused.

        LFS files have a sha256, small ones git's blob sha1; both are checked against the
        bytes that arrive.
        """
        import httpx2
        from huggingface_hub import HfApi, errors

        secret = self.secret
        api = HfApi(endpoint=self.endpoint, token=secret.reveal() if secret else False)
        try:
            with _watched():
                commit, listed = within(LONGEST_LIST, lambda: self._listed(api))
        except (errors.HfHubHTTPError, ValueError, httpx2.HTTPError, OSError) as error:
            raise self._trouble(error) from error
        except (LookupError, TypeError, AttributeError, RecursionError) as error:
            raise self.unreadable(error) from error
        if commit is None:
            what = f"{self.endpoint} did not say which commit {self.revision} is"
            raise Permanent(Finding("source.no-commit", what, "its answer has no sha", "is it a Hugging Face hub?"))
        return self.snapshot(self.chosen(listed, commit, Path()), commit)

    def _listed(self, api: HfApi) -> tuple[str | None, list[File]]:
        from huggingface_hub import RepoFile

        commit = api.model_info(self.repo, revision=self.revision).sha
        tree = api.list_repo_tree(self.repo, revision=commit, recursive=True)
        return commit, self.listed(
            {"path": f.path, "size": f.size, **({"sha256": f.lfs.sha256} if f.lfs else {"git_sha1": f.blob_id})}
            for f in tree
            if isinstance(f, RepoFile)
        )

    def locate(self, commit: str, file: File, scratch: Path) -> Remote:
        return Remote(f"{self.endpoint}/{self.repo}/resolve/{commit}/{quote(file.path)}", bearer(self.token))

    def _trouble(self, error: Exception) -> Trouble:
        import httpx2
        from huggingface_hub import errors

        repo, asked = self.repo, self.asked
        match error:
            case errors.GatedRepoError():
                fix = "accept its terms on the hub, and name a token of that account in model.token"
                finding = Finding("source.gated", f"{repo} is gated", asked, fix)
            case errors.RevisionNotFoundError():
                fix = "correct model.revision: a branch, a tag or a commit"
                finding = Finding("source.not-found", f"{repo} has no revision {self.revision}", asked, fix)
            case errors.RepositoryNotFoundError():
                hidden = "the token may not see it" if self.token else "it is private and no token is named"
                fix = "correct model.repo, or name a token in model.token"
                why = f"{asked}: it does not exist, or {hidden}"
                finding = Finding("source.not-found", f"{repo} was not found", why, fix)
            case errors.HFValidationError():
                return self.misnamed(str(error).splitlines()[0])
            case errors.HfHubHTTPError():
                return http_trouble(error.response.status_code, asked, error.response.headers.get("Retry-After", ""))
            case httpx2.TooManyRedirects() | ValueError():
                return self.unreadable(error)
            case _:
                return self.unreachable(error)
        return NotGiven(finding)


_until: ContextVar[float] = ContextVar("until")
PATIENCE = dict.fromkeys(("connect", "read", "write", "pool"), 30.0)


@contextmanager
def _watched() -> Iterator[None]:
    """Inside, the library waits for no byte longer than 30 s, reads no list for ever and
    no endless body, and does not take the token where a next page's address leads.
    """
    from huggingface_hub import get_session

    session = get_session()
    hooks = session.event_hooks
    if _asks not in hooks["request"]:
        session.event_hooks = {"request": [*hooks["request"], _asks], "response": [*hooks["response"], _answers]}
    token = _until.set(time.monotonic() + LONGEST_LIST)
    try:
        yield
    finally:
        _until.reset(token)


def _asks(request: httpx2.Request) -> None:
    if time.monotonic() > _until.get(math.inf):
        raise TimeoutError("the list does not end")
    request.extensions["timeout"] = PATIENCE
    hub = os.environ.get(HuggingFaceModel.endpoint_variable) or HuggingFaceModel.home
    if origin(str(request.url)) != origin(hub):
        request.headers.pop("Authorization", None)


def _answers(response: httpx2.Response) -> None:
    response._content = bounded(response.iter_bytes(), _until.get(math.inf))  # noqa: SLF001 - what its read() would set
