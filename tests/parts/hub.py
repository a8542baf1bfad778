"""A Hugging Face hub of the tests' own, behind its wire protocol; faults are told to it, never patched into our client.

It answers what huggingface_hub and the transfer ask of one repository, ``org/model``:
``GET /api/models/org/model/revision/REV?blobs=true`` (commit, and each file's size with its LFS sha256 or git blob id) and
``GET /org/model/resolve/COMMIT/PATH`` (bytes, with ``Range``), with the hub's ``X-Error-Code`` on refusals.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

REPO = "org/model"
LFS = (".safetensors", ".bin")


@dataclass
class Hub:
    """``status`` (with ``error_code``) answers everything; the rest faults the bytes of the file that is named (``truncated``: once)."""

    files: dict[str, bytes]
    url: str = ""
    status: int = 200
    error_code: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    busy_times: int = 0
    flipped: str = ""
    truncated: str = ""
    stalled: str = ""
    lying_size: str = ""
    moved: bool = False
    asked: list[tuple[str, str]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    sent: int = 0
    go_on: threading.Event = field(default_factory=threading.Event)
    stuck: threading.Event = field(default_factory=threading.Event)

    @property
    def commit(self) -> str:
        parts = [hashlib.sha1(name.encode() + body).hexdigest() for name, body in sorted(self.files.items())]  # noqa: S324
        return hashlib.sha1("".join(parts).encode()).hexdigest()  # noqa: S324

    def listing(self) -> dict[str, Any]:
        siblings = []
        for name, body in self.files.items():
            size = len(body) + (7 if name == self.lying_size else 0)
            one: dict[str, Any] = {"rfilename": name, "size": size, "blobId": blob_id(body)}
            if name.endswith(LFS):
                one["lfs"] = {"sha256": hashlib.sha256(body).hexdigest(), "size": size, "pointerSize": 134}
            siblings.append(one)
        return {"id": REPO, "modelId": REPO, "sha": self.commit, "siblings": siblings, "private": False, "tags": [], "downloads": 0}


def blob_id(body: bytes) -> str:
    """Git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()  # noqa: S324


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.asked.append((path, self.headers.get("Range", "")))
        hub.tokens.add(self.headers.get("Authorization", ""))
        if hub.status != 200 and hub.busy_times != 0:
            hub.busy_times -= 1
            self.refuse(hub.status, hub.error_code)
        elif found := re.fullmatch(rf"/api/models/{REPO}/revision/(.+)", path):
            if found[1] in ("main", hub.commit):
                self.answer(200, json.dumps(hub.listing()).encode(), {"Content-Type": "application/json"})
            else:
                self.refuse(404, "RevisionNotFound")
        elif found := re.fullmatch(rf"/{REPO}/resolve/([0-9a-f]+)/(.+)", path):
            self.send(found[1], found[2])
        else:
            self.refuse(404, "RepoNotFound")

    def send(self, commit: str, name: str) -> None:
        hub = self.hub
        if commit != hub.commit or name not in hub.files:
            self.refuse(404, "EntryNotFound")
            return
        body = bytearray(hub.files[name])
        if name == hub.flipped:
            body[len(body) // 2] ^= 1
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        rest = bytes(body[start:])
        if name == hub.truncated:
            self.write(rest[: max(1, len(rest) // 2)])
            self.close_connection = True
            hub.truncated = ""
        elif name == hub.stalled:
            self.write(rest[: len(rest) // 2])
            hub.stuck.set()
            hub.go_on.wait()
        else:
            self.write(rest)

    def write(self, data: bytes) -> None:
        self.wfile.write(data)
        self.hub.sent += len(data)

    def refuse(self, status: int, code: str) -> None:
        headers = {"X-Error-Code": code} if code else {}
        self.answer(status, b"", headers | self.hub.headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def running_hub(model: Path) -> Iterator[Hub]:
    """A hub whose one repository holds the files of ``model``."""
    hub = Hub({path.relative_to(model).as_posix(): path.read_bytes() for path in model.rglob("*") if path.is_file()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()
