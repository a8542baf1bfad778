"""The Hugging Face Hub, or whatever ``HF_ENDPOINT`` names: its API lists, the store moves
the bytes.

Its library is slow to import: only a source that is asked imports it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal
from urllib.parse import quote

from model_delivery.base import Finding, Permanent, Trouble
from model_delivery.models.sources.http import HubModel, NotGiven, http_trouble
from model_delivery.models.sources.spec import Remote, Revision
from model_delivery.values import File, Snapshot


class HuggingFaceModel(HubModel):
    """A repository of the Hugging Face Hub (or of ``HF_ENDPOINT``)."""

    source: Literal["huggingface"]
    revision: Revision = "main"

    home: ClassVar[str] = "https://huggingface.co"
    endpoint_variable: ClassVar[str] = "HF_ENDPOINT"

    def open(self) -> HuggingFace:
        return HuggingFace(self)


@dataclass(frozen=True)
class HuggingFace:
    """LFS files have a sha256, small ones git's blob sha1; both are checked against the
    bytes that arrive.
    """

    model: HuggingFaceModel

    def resolve(self) -> Snapshot:
        """Retryable when the hub cannot be reached or is overloaded; a "no" is
        Refused.
        """
        import httpx2
        from huggingface_hub import HfApi, RepoFile, errors

        model, secret = self.model, self.model.secret
        api = HfApi(endpoint=model.endpoint, token=secret.reveal() if secret else False)
        try:
            commit = api.model_info(model.repo, revision=model.revision, timeout=30).sha
            tree = list(api.list_repo_tree(model.repo, revision=commit, recursive=True))
        except (errors.HfHubHTTPError, ValueError, httpx2.HTTPError, OSError) as error:
            raise self._trouble(error) from error
        if commit is None:
            what = f"{model.endpoint} did not say which commit {model.revision} is"
            raise Permanent(Finding("source.no-commit", what, "its answer has no sha", "is it a Hugging Face hub?"))
        listed = (
            File(path=f.path, size=f.size, sha256=f.lfs.sha256)
            if f.lfs
            else File(path=f.path, size=f.size, git_sha1=f.blob_id)
            for f in tree
            if isinstance(f, RepoFile)
        )
        return model.snapshot(model.chosen(listed), commit)

    def locate(self, commit: str, file: File, scratch: Path) -> Remote:
        model, secret = self.model, self.model.secret
        headers = {"Authorization": f"Bearer {secret.reveal()}"} if secret else {}
        return Remote(f"{model.endpoint}/{model.repo}/resolve/{commit}/{quote(file.path)}", headers)

    def _trouble(self, error: Exception) -> Trouble:
        from huggingface_hub import errors

        repo, revision, asked = self.model.repo, self.model.revision, self.model.asked
        match error:
            case errors.GatedRepoError():
                fix = "accept its terms on the hub, and name a token of that account in model.token"
                return NotGiven(Finding("source.gated", f"{repo} is gated", asked, fix))
            case errors.RevisionNotFoundError():
                fix = "correct model.revision: a branch, a tag or a commit"
                return NotGiven(Finding("source.not-found", f"{repo} has no revision {revision}", asked, fix))
            case errors.RepositoryNotFoundError():
                hidden = "the token may not see it" if self.model.token else "it is private and no token is named"
                why, fix = (
                    f"{asked}: it does not exist, or {hidden}",
                    "correct model.repo, or name a token in model.token",
                )
                return NotGiven(Finding("source.not-found", f"{repo} was not found", why, fix))
            case errors.HFValidationError():
                return self.model.misnamed(str(error).splitlines()[0])
            case errors.HfHubHTTPError():
                return http_trouble(error.response.status_code, asked, error.response.headers.get("Retry-After", ""))
        return self.model.unreachable(error)
