"""The Hugging Face Hub, or whatever ``HF_ENDPOINT`` names: its API lists, the store moves the bytes."""

from __future__ import annotations

import os
from urllib.parse import quote

import httpx2
from huggingface_hub import HfApi, RepoFile
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from model_delivery.base.findings import Finding, Permanent, Refused, Retryable, Trouble
from model_delivery.base.secrets import Secret
from model_delivery.models.sources import Remote
from model_delivery.models.sources.http import NotGiven, http_trouble
from model_delivery.models.sources.listing import pinned, select
from model_delivery.models.sources.model import HuggingFaceModel
from model_delivery.values.snapshot import File, Snapshot


class HuggingFace:
    """LFS files have a sha256, small ones git's blob sha1; both are checked against the bytes that arrive."""

    def __init__(self, model: HuggingFaceModel) -> None:
        self.model = model
        self.name, self.key = f"huggingface {model.repo}", model.repo.replace("/", "--")
        self.endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")

    def resolve(self, token: Secret | None) -> Snapshot:
        """The revision's commit and files. A hub that cannot be reached or is overloaded is Retryable, a "no" is Refused."""
        api = HfApi(endpoint=self.endpoint, token=token.reveal() if token else False)
        try:
            commit = api.model_info(self.model.repo, revision=self.model.revision, timeout=30).sha
            tree = list(api.list_repo_tree(self.model.repo, revision=commit, recursive=True))
        except (HfHubHTTPError, HFValidationError, httpx2.HTTPError, OSError) as error:
            raise self._trouble(error, with_token=token is not None) from error
        if commit is None:
            what = f"{self.endpoint} did not say which commit {self.model.revision} is"
            raise Permanent(Finding("todo", what, "its answer has no sha", "is it a Hugging Face hub?"))
        listed = [
            File(
                path=f.path, size=f.size, sha256=f.lfs.sha256 if f.lfs else None, git_sha1=None if f.lfs else f.blob_id
            )
            for f in tree
            if isinstance(f, RepoFile)
        ]
        chosen = select(pinned(listed, self.model.pins), self.model.include, self.model.exclude, self.model.allow)
        unknown = [f.path for f in chosen if f.sha256 is None and f.git_sha1 is None]
        if unknown:
            raise Refused(
                Finding(
                    "todo",
                    "the hub states no hash for some files",
                    ", ".join(unknown[:5]),
                    "they could not be verified: use a hub that does",
                )
            )
        return Snapshot(source="huggingface", key=self.key, commit=commit, files=chosen)

    def locate(self, commit: str, file: File, scratch: object, token: Secret | None) -> Remote:
        headers = {"Authorization": f"Bearer {token.reveal()}"} if token else {}
        return Remote(f"{self.endpoint}/{self.model.repo}/resolve/{commit}/{quote(file.path)}", headers)

    def _trouble(self, error: Exception, *, with_token: bool) -> Trouble:
        repo, revision = self.model.repo, self.model.revision
        asked = f"{self.endpoint} was asked for {repo}@{revision}"
        match error:
            case GatedRepoError():
                return NotGiven(
                    Finding(
                        "todo",
                        f"{repo} is gated",
                        asked,
                        "accept its terms on the hub, and name a token of that account in model.token",
                    )
                )
            case RevisionNotFoundError():
                return NotGiven(
                    Finding(
                        "todo",
                        f"{repo} has no revision {revision}",
                        asked,
                        "correct model.revision: a branch, a tag or a commit",
                    )
                )
            case RepositoryNotFoundError():
                why = (
                    "it does not exist, or the token may not see it"
                    if with_token
                    else "it does not exist, or it is private and no token is named"
                )
                return NotGiven(
                    Finding(
                        "todo",
                        f"{repo} was not found",
                        f"{asked}: {why}",
                        "correct model.repo, or name a token in model.token",
                    )
                )
            case HFValidationError():
                return Refused(
                    Finding("todo", f"{repo} is no repository's name", str(error).splitlines()[0], "write OWNER/NAME")
                )
            case HfHubHTTPError():
                return http_trouble(error.response.status_code, asked, error.response.headers.get("Retry-After", ""))
        return Retryable(
            Finding(
                "todo",
                f"{self.endpoint} cannot be reached",
                f"{asked}: {type(error).__name__}",
                "check the network, HTTPS_PROXY and HF_ENDPOINT",
            )
        )
