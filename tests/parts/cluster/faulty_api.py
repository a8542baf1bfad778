"""A proxy before the real API server, which can refuse a request, lose its answer, break
it off or hold it: what befalls real ones, when a test wants it.
"""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

from tests.parts.cluster.control_plane import Cluster


@dataclass(frozen=True)
class Fault:
    """Of the next request with ``method`` whose path and query hold ``path``.

    ``status``: this answer, in the API server's stead; with ``after`` the request is
    carried out first. ``cut``: so many bytes of the real answer come through, then the
    connection breaks. ``held``: the answer waits for this event.
    """

    method: str
    path: str
    status: int = 0
    after: bool = False
    cut: int | None = None
    held: threading.Event | None = None
    retry_after: int | None = None


@dataclass
class FaultyApi:
    """``faults``: each befalls one request; ``met``: those that did; ``asked``: the
    method of every request. ``kubeconfig``: the administrator's, by way of the proxy.
    """

    cluster: Cluster
    kubeconfig: Path
    faults: list[Fault] = field(default_factory=list)
    met: list[Fault] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self, method: str, path: str) -> Fault | None:
        with self.lock:
            self.asked.append(method)
            found = next((one for one in self.faults if one.method == method and one.path in path), None)
            if found is not None:
                self.faults.remove(found)
                self.met.append(found)
            return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: FaultyApi

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.api.next(self.command, self.path)
        if fault is not None and fault.status and not fault.after:
            self._refuse(fault)
            return
        headers = {name: self.headers[name] for name in ("Accept", "Content-Type") if name in self.headers}
        with self.api.cluster.client.stream(
            self.command, self.path, content=body, headers=headers, timeout=None
        ) as answer:
            if fault is not None and fault.status:
                answer.read()
                self._refuse(fault)
                return
            if fault is not None and fault.held is not None:
                fault.held.wait()
            self.send_response(answer.status_code)
            self.send_header("Content-Type", answer.headers.get("Content-Type", "text/plain"))
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            left = fault.cut if fault is not None and fault.cut is not None else None
            for chunk in answer.iter_bytes():
                data = chunk if left is None else chunk[:left]
                if data:
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                if left is not None and (left := left - len(data)) == 0:
                    self.close_connection = True
                    return
            self.wfile.write(b"0\r\n\r\n")

    def _refuse(self, fault: Fault) -> None:
        said = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "code": fault.status,
            "message": "a fault of the test's",
        }
        body = json.dumps(said).encode()
        self.send_response(fault.status)
        for name, value in {
            "Retry-After": fault.retry_after,
            "Content-Length": len(body),
            "Content-Type": "application/json",
        }.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass  # noqa: N815

    def handle_one_request(self) -> None:
        with suppress(OSError, httpx.HTTPError):  # one of both went away
            super().handle_one_request()
            return
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def faulty_api(cluster: Cluster) -> Iterator[FaultyApi]:
    """Before ``cluster``'s API server, on loopback, for the length of the block."""
    crt, key = cluster.authority.issue("faulty-api", "faulty-api", names=["127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(crt, key)
    api = FaultyApi(cluster, cluster.folder / "faulty-api.kubeconfig")
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": api}))
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.daemon_threads = True
    said = json.loads(cluster.kubeconfig.read_text())
    said["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{server.server_port}"
    api.kubeconfig.write_text(json.dumps(said))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        for fault in (*api.faults, *api.met):
            if fault.held is not None:
                fault.held.set()
        server.shutdown()
        server.server_close()
        thread.join()
