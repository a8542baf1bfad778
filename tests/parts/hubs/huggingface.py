"""A Hugging Face hub of the tests' own, of one repository.

It answers what huggingface_hub and the transfer ask: ``GET
/api/models/org/model/revision/REV`` (the commit), ``GET
/api/models/org/model/tree/COMMIT?recursive=true`` (each file's size with its LFS sha256
or git blob id) and ``GET /org/model/resolve/COMMIT/PATH`` (bytes, with ``Range``; with
``redirected`` from a signed address that expires, with ``elsewhere`` from another host),
with the hub's ``X-Error-Code`` on refusals. Where a ``token`` is set, nothing is told
without it. With ``api`` set to another hub's address
(olah's), its API's answers are passed on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx

from tests.parts.hubs import Hub, HubHandler, blob_id, files_of, serving, sum_of

REPO = "org/model"
LFS = (".safetensors", ".bin")


@dataclass
class HuggingFaceHub(Hub):
    api: str = ""
    redirected: bool = False
    elsewhere: str = ""
    signatures: list[str] = field(default_factory=list)
    expired: set[str] = field(default_factory=set)
    uses: int = -1
    listed: Any = None
    endless: bool = False

    def tree(self) -> list[dict[str, Any]]:
        found = []
        for name, body in self.files.items():
            one: dict[str, Any] = {"type": "file", "path": name, "size": self.size_of(name), "oid": blob_id(body)}
            if name.endswith(LFS):
                one["lfs"] = {"oid": sum_of(body), "size": self.size_of(name), "pointerSize": 134}
            found.append(one)
        return found


class Handler(HubHandler):
    hub: HuggingFaceHub

    def do_GET(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        if self.refused():
            return
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self.refuse(401, "")
        elif hub.api and path.startswith("/api/"):
            told = httpx.get(hub.api + self.path, follow_redirects=True, trust_env=False)
            self.answer(told.status_code, told.content, {"Content-Type": told.headers.get("Content-Type", "")})
        elif found := re.fullmatch(rf"/api/models/{REPO}/revision/(.+)", path):
            if found[1] in ("main", hub.commit):
                self.answer_json(
                    {"id": REPO, "modelId": REPO, "sha": hub.commit, "private": False, "tags": [], "downloads": 0}
                )
            else:
                self.refuse(404, "RevisionNotFound")
        elif path == f"/api/models/{REPO}/tree/{hub.commit}" and hub.endless:
            page = [
                {"type": "file", "path": f"{len(hub.asked)}-{n}.json", "size": 2, "oid": "0" * 40} for n in range(5000)
            ]
            headers = {"Content-Type": "application/json", "Link": f'<{hub.url}{path}?cursor=x>; rel="next"'}
            self.answer(200, json.dumps(page).encode(), headers)
        elif path == f"/api/models/{REPO}/tree/{hub.commit}":
            self.answer_json(hub.listed or hub.tree())
        elif found := re.fullmatch(rf"/{REPO}/resolve/([0-9a-f]+)/(.+)", path):
            self.resolve(found[1], found[2])
        elif found := re.fullmatch(r"/signed/(\d+)/(.+)", path):
            self.signed(found[1], found[2])
        else:
            self.refuse(404, "RepoNotFound")

    def resolve(self, commit: str, name: str) -> None:
        hub = self.hub
        if commit in hub.older:
            self.send(name, hub.older[commit])
        elif commit != hub.commit and not hub.api:
            self.refuse(404, "EntryNotFound")
        elif hub.elsewhere:
            self.answer(302, b"", {"Location": f"{hub.elsewhere}/signed/0/{name}"})
        elif hub.redirected:
            with hub.lock:
                hub.signatures.append(str(len(hub.signatures)))
                signature = hub.signatures[-1]
            self.answer(302, b"", {"Location": f"/signed/{signature}/{name}"})
        else:
            self.send(name)

    def signed(self, signature: str, name: str) -> None:
        """With ``uses`` at 1 or more, a signature is good for that many requests."""
        hub = self.hub
        if signature in hub.expired:
            self.refuse(403, "")
            return
        if hub.uses > 0 and len([path for path, _ in hub.asked if f"/signed/{signature}/" in path]) >= hub.uses:
            hub.expired.add(signature)
        self.send(name)


@contextmanager
def running_hub(
    model: Path, certificate: Path | None = None, at: tuple[str, str] | None = None
) -> Iterator[HuggingFaceHub]:
    """A hub whose one repository holds the files of ``model``."""
    hub = HuggingFaceHub(files_of(model))
    with serving(Handler, hub, certificate, at):
        yield hub
