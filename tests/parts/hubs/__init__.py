"""Hubs of the tests' own, behind their wire protocols; faults are told to them, never
patched into our client.
"""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PIECE = 1 << 20


@dataclass
class Hub:
    """One repository, ``org/model``. ``status`` (with ``error_code``) answers everything;
    the rest faults the bytes of the file that is named.

    ``flipped``: one bit differs; ``truncated``: cut at the file's middle, once;
    ``stalled``: nothing comes after its middle until ``go_on`` (``stuck`` says that it
    was asked for); ``trickling``: a byte every 50 ms after its middle; ``missing``: 404;
    ``whole_only``: Range is ignored; ``lying_size``: the list is wrong;
    ``dripping``: the head never ends of an answer to a path that holds this (``stuck``
    says that it was asked for), ``dripping_body``: the body;
    ``chunking``: it comes in chunks, and the first one's size never ends; ``older``: the
    files of commits that the branch has left.
    """

    files: dict[str, bytes]
    url: str = ""
    status: int = 200
    error_code: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    busy_times: int = 0
    flipped: str = ""
    truncated: str = ""
    stalled: str = ""
    trickling: str = ""
    missing: str = ""
    whole_only: bool = False
    lying_size: str = ""
    dripping: str = ""
    dripping_body: str = ""
    chunking: str = ""
    older: dict[str, dict[str, bytes]] = field(default_factory=dict)
    token: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    tally: list[int] = field(default_factory=lambda: [0])
    lock: threading.Lock = field(default_factory=threading.Lock)
    go_on: threading.Event = field(default_factory=threading.Event)
    stuck: threading.Event = field(default_factory=threading.Event)

    @property
    def commit(self) -> str:
        parts = [named(name, body) for name, body in sorted(self.files.items())]
        return hashlib.sha1("".join(parts).encode()).hexdigest()  # noqa: S324

    def size_of(self, name: str) -> int:
        return len(self.files[name]) + (7 if name == self.lying_size else 0)

    @property
    def sent(self) -> int:
        """Bytes of files that were sent for requests that began since this was set."""
        return self.tally[0]

    @sent.setter
    def sent(self, count: int) -> None:
        self.tally = [count]


class HubHandler(BaseHTTPRequestHandler):
    """What hubs have in common: refusals, and bytes with their faults."""

    protocol_version = "HTTP/1.1"
    hub: Hub
    tally: list[int]

    def refused(self) -> bool:
        """Note the request; refuse it when the hub is told to."""
        hub = self.hub
        with hub.lock:
            hub.asked.append((self.path, self.headers.get("Range", "")))
            hub.tokens.add(self.headers.get("Authorization", "") or self.headers.get("Cookie", ""))
            busy = hub.status != 200 and hub.busy_times != 0
            hub.busy_times -= busy
        if busy:
            self.refuse(hub.status, hub.error_code)
        elif hub.dripping and hub.dripping in self.path:
            self.drip(b"HTTP/1.1 200 OK\r\nX: ")
        elif hub.dripping_body and hub.dripping_body in self.path:
            self.drip(b"HTTP/1.1 200 OK\r\n\r\n")
        return busy or self.close_connection

    def drip(self, head: bytes) -> None:
        self.wfile.write(head)
        self.hub.stuck.set()
        while not self.hub.go_on.wait(0.2):
            self.wfile.write(b"a")
        self.close_connection = True

    def send(self, name: str, files: Mapping[str, bytes] | None = None) -> None:
        """``files``: of an older commit."""
        hub = self.hub
        files = hub.files if files is None else files
        self.tally = hub.tally
        if name not in files or name == hub.missing:
            self.refuse(404, "EntryNotFound")
            return
        if name == hub.chunking:
            self.drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0")
            return
        body = bytearray(files[name])
        if name == hub.flipped:
            body[len(body) // 2] ^= 1
        start, stop, ranged = 0, len(body), False
        if (asked := re.match(r"bytes=(\d+)-(\d*)$", self.headers.get("Range", ""))) and not hub.whole_only:
            start, ranged = int(asked[1]), True
            stop = min(len(body), int(asked[2]) + 1) if asked[2] else len(body)
        self.send_response(206 if ranged else 200)
        if ranged:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(body)}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        rest = memoryview(body)[start:stop]
        good = max(0, len(body) // 2 - start)
        if name == hub.truncated:
            hub.truncated = ""
            self.write(rest[:good])
            self.close_connection = True
        elif name == hub.stalled and good < len(rest):
            self.write(rest[:good])
            hub.stuck.set()
            hub.go_on.wait()
            self.close_connection = True
        elif name == hub.trickling and good < len(rest):
            self.write(rest[:good])
            self.trickle(rest[good:])
        else:
            self.write(rest)

    def trickle(self, rest: memoryview) -> None:
        for at in range(len(rest)):
            if self.hub.go_on.wait(0.05):
                self.close_connection = True
                return
            self.write(rest[at : at + 1])

    def write(self, data: memoryview) -> None:
        for at in range(0, len(data), PIECE):
            self.wfile.write(data[at : at + PIECE])
            with self.hub.lock:
                self.tally[0] += len(data[at : at + PIECE])

    def refuse(self, status: int, code: str) -> None:
        headers = {"X-Error-Code": code} if code else {}
        self.answer(status, b"", headers | self.hub.headers)

    def answer_json(self, value: Any, status: int = 200) -> None:
        self.answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def handle_one_request(self) -> None:
        with suppress(ConnectionError):  # a client that goes away is no fault of the hub's
            super().handle_one_request()
            return
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Quiet."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


@contextmanager
def serving(
    handler: type[HubHandler], hub: Hub, certificate: Path | None = None, at: tuple[str, str] | None = None
) -> Iterator[Hub]:
    """``hub`` on a free port until the end of the block; over TLS with a ``certificate``
    (a file of key and chain).

    ``at``: the address that it listens on and the name that it goes by; otherwise
    loopback.
    """
    address, name = at or ("127.0.0.1", "localhost" if certificate else "127.0.0.1")
    server = Server((address, 0), type("Handler", (handler,), {"hub": hub}))
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    hub.url = f"{'https' if certificate else 'http'}://{name}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()


def files_of(model: Path) -> dict[str, bytes]:
    return {path.relative_to(model).as_posix(): path.read_bytes() for path in model.rglob("*") if path.is_file()}


@lru_cache(256)
def named(name: str, body: bytes) -> str:
    """A file's part in a commit: tests/compatibility holds commits that are made so."""
    return hashlib.sha1(name.encode() + body).hexdigest()  # noqa: S324


@lru_cache(256)
def sum_of(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


@lru_cache(256)
def blob_id(body: bytes) -> str:
    """Git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()  # noqa: S324
