"""ModelScope, or whatever ``MODELSCOPE_ENDPOINT`` names. Its API states the sha256 of every file, and no commit for a branch."""

from __future__ import annotations

import os
import re
from urllib.parse import urlencode

import requests
from modelscope.hub.api import HubApi
from modelscope_hub.errors import APIError, HubError

from model_delivery.base.findings import Finding, Refused, Retryable, Trouble
from model_delivery.base.secrets import Secret
from model_delivery.models.sources import Remote
from model_delivery.models.sources.http import NotGiven, http_trouble
from model_delivery.models.sources.listing import pinned, select
from model_delivery.models.sources.model import ModelScopeModel
from model_delivery.values.resources import digest
from model_delivery.values.snapshot import File, Snapshot


class ModelScope:
    """A branch's or a tag's commit is the digest of its file list: a branch that moves meanwhile gives bytes with other hashes, and is caught."""

    def __init__(self, model: ModelScopeModel) -> None:
        self.model = model
        self.endpoint = os.environ.get("MODELSCOPE_ENDPOINT", "https://modelscope.cn").rstrip("/")
        self.name, self.key = f"modelscope {model.repo}", model.repo.replace("/", "--")

    def resolve(self, token: Secret | None) -> Snapshot:
        """The revision's files. A hub that cannot be reached or is overloaded is Retryable, a "no" is NotGiven."""
        asked = f"{self.endpoint} was asked for {self.model.repo}@{self.model.revision}"
        if self.model.repo.count("/") != 1:
            raise Refused(Finding("todo", f"{self.model.repo} is no repository's name", asked, "write OWNER/NAME"))
        try:
            api = HubApi(endpoint=self.endpoint, token=token.reveal() if token else None)
            told = api._api.list_repo_files(self.model.repo, "model", revision=self.model.revision)  # noqa: SLF001 - the public call leaves the hashes out
        except (HubError, requests.RequestException, OSError) as error:
            raise self._trouble(error, asked) from error
        listed = [
            File(path=one.path, size=one.size, sha256=(one.sha256 or "").lower() or None)
            for one in told
            if one.type == "blob"
        ]
        chosen = select(pinned(listed, self.model.pins), self.model.include, self.model.exclude, self.model.allow)
        unknown = [f.path for f in chosen if not re.fullmatch(r"[0-9a-f]{64}", f.sha256 or "")]
        if unknown:
            fix = "they could not be verified: pin them in model.pins, or use another source"
            raise Refused(Finding("todo", "the hub states no sha256 for some files", ", ".join(unknown[:5]), fix))
        exact = re.fullmatch(r"[0-9a-f]{40}", self.model.revision)
        commit = self.model.revision if exact else digest([[f.path, f.size, f.sha256] for f in chosen], 40)
        return Snapshot(source="modelscope", key=self.key, commit=commit, files=chosen)

    def locate(self, commit: str, file: File, scratch: object, token: Secret | None) -> Remote:
        query = urlencode({"Revision": self.model.revision, "FilePath": file.path})
        headers = (
            {"Authorization": f"Bearer {token.reveal()}", "Cookie": f"m_session_id={token.reveal()}"} if token else {}
        )
        return Remote(f"{self.endpoint}/api/v1/models/{self.model.repo}/repo?{query}", headers)

    def _trouble(self, error: Exception, asked: str) -> Trouble:
        status = error.status_code if isinstance(error, APIError) else None
        match status:
            case None:
                why, fix = (
                    f"{asked}: {type(error).__name__}",
                    "check the network, HTTPS_PROXY, REQUESTS_CA_BUNDLE and MODELSCOPE_ENDPOINT",
                )
                return Retryable(Finding("todo", f"{self.endpoint} cannot be reached", why, fix))
            case 404:
                why = f"{asked}: no such repository, no such revision, or one that the token may not see"
                fix = 'correct model.repo and model.revision (the default branch here is "master"), or name a token in model.token'
                return NotGiven(Finding("todo", f"{self.model.repo}@{self.model.revision} was not found", why, fix))
        return http_trouble(status, asked, str(getattr(error, "retry_after", None) or ""))
