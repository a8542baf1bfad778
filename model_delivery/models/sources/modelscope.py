"""ModelScope, or whatever ``MODELSCOPE_ENDPOINT`` names. Its API states the sha256 of
every file, and no commit for a branch.

Its library is slow to import: only a source that is asked imports it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from urllib.parse import urlencode

from model_delivery.base import Finding, Trouble, bearer, within
from model_delivery.models.sources.http import LONGEST_LIST, HubModel, NotGiven, bounded, http_trouble, trusted
from model_delivery.models.sources.spec import Remote, Revision, origin
from model_delivery.values import File, Snapshot

if TYPE_CHECKING:
    import requests


class ModelScopeModel(HubModel):
    """A repository of ModelScope."""

    source: Literal["modelscope"]
    revision: Revision = "master"

    home: ClassVar[str] = "https://modelscope.cn"
    endpoint_variable: ClassVar[str] = "MODELSCOPE_ENDPOINT"

    def resolve(self) -> Snapshot:
        """Retryable when the hub cannot be reached or is overloaded; a "no" is
        NotGiven.

        A branch's or a tag's commit is the digest of its file list. A branch that moves
        meanwhile gives bytes with other hashes, and is caught.
        """
        import requests
        from modelscope.hub.api import HubApi
        from modelscope_hub.errors import HubError
        from urllib3.exceptions import HTTPError

        if self.repo.count("/") != 1:
            raise self.misnamed(self.asked)
        secret = self.secret
        try:
            api = HubApi(endpoint=self.endpoint, token=secret.reveal() if secret else None)
            hub = api._api  # noqa: SLF001 - the public call leaves the hashes out
            for session in (hub.legacy._session, hub.legacy._read_session):  # noqa: SLF001 - they trust certifi's store alone
                _trust(session, self.endpoint)
            hub.legacy._session.hooks["response"].append(_answers(time.monotonic() + LONGEST_LIST))  # noqa: SLF001 - reads without end
            entries = within(LONGEST_LIST, lambda: hub.list_repo_files(self.repo, "model", revision=self.revision))
        except (HubError, requests.RequestException, HTTPError, OSError) as error:
            raise self._trouble(error) from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise self.unreadable(error) from error
        listed = self.listed(
            {"path": e.path, "size": e.size, "sha256": _sum(e.sha256)} for e in entries if e.type == "blob"
        )
        exact = re.fullmatch(r"[0-9a-f]{40}", self.revision)
        return self.snapshot(self.chosen(listed, "", Path()), self.revision if exact else "")

    def locate(self, commit: str, file: File, scratch: Path) -> Remote:
        query, secret = urlencode({"Revision": self.revision, "FilePath": file.path}), self.secret
        cookie = {"Cookie": f"m_session_id={secret.reveal()}"} if secret else {}
        return Remote(f"{self.endpoint}/api/v1/models/{self.repo}/repo?{query}", bearer(self.token) | cookie)

    def _trouble(self, error: Exception) -> Trouble:
        status, asked = getattr(error, "status_code", None), self.asked
        if status is None:
            return self.unreachable(error)
        if status == 404:
            what = f"{self.repo}@{self.revision} was not found"
            why = f"{asked}: no such repository, no such revision, or one that the token may not see"
            fix = (
                'correct model.repo and model.revision (the default branch here is "master"), '
                "or name a token in model.token"
            )
            return NotGiven(Finding("source.not-found", what, why, fix))
        return http_trouble(status, asked, str(getattr(error, "retry_after", None) or ""))


def _trust(session: requests.Session, home: str) -> None:
    """By ``trusted``, through a proxy too; the library's own adapter stays. No secret
    goes elsewhere than to ``home``: a cookie knows no port.
    """
    for each in session.adapters.values():
        each.send = partial(_sent, each.send, origin(home))  # type: ignore[method-assign]
    adapter: Any = session.get_adapter("https://")
    adapter.poolmanager.connection_pool_kw["ssl_context"] = trusted()
    adapter.proxy_manager_for = partial(adapter.proxy_manager_for, ssl_context=trusted())


def _sent(
    send: Callable[..., requests.Response], home: object, request: requests.PreparedRequest, **how: Any
) -> requests.Response:
    if origin(request.url or "") != home:
        for name in ("Authorization", "Cookie"):
            request.headers.pop(name, None)
    return send(request, **how)


def _answers(until: float) -> Callable[..., None]:
    """A hook of requests, which would read any answer to its end."""

    def read(answer: requests.Response, **_: object) -> None:
        answer._content = bounded(answer.iter_content(1 << 16), until)  # noqa: SLF001 - what its content would set

    return read


def _sum(stated: str | None) -> str | None:
    return stated.lower() if re.fullmatch(r"[0-9A-Fa-f]{64}", stated or "") and stated else None
