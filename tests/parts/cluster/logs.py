"""The one endpoint of a kubelet that a played node serves: ``/containerLogs``, over TLS,
to the API server alone.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qs, urlsplit

from tests.parts.cluster.authority import Authority

KNOWN = {"follow", "tailLines", "limitBytes", "previous", "timestamps"}  # the last is played without moments


class Logs(Protocol):
    def log_file(self, namespace: str, pod: str, container: str, *, previous: bool) -> Path | None: ...
    def is_running(self, namespace: str, pod: str, container: str) -> bool: ...


class _Handler(BaseHTTPRequestHandler):
    logs: Logs

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(url.query).items()}
        parts = url.path.strip("/").split("/")
        if len(parts) != 4 or parts[0] != "containerLogs" or not asked.keys() <= KNOWN:
            self.send_error(501, f"a played node does not serve {self.path}")
            return
        namespace, pod, container = parts[1:]
        file = self.logs.log_file(namespace, pod, container, previous=asked.get("previous") == "true")
        if file is None:
            self.send_error(400, f"container {container} in pod {pod} has no log")
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.end_headers()
        follow = asked.get("follow") == "true"
        self._send(file, asked, lambda: follow and self.logs.is_running(namespace, pod, container))

    def _send(self, file: Path, asked: dict[str, str], more: Callable[[], bool]) -> None:
        left = int(asked.get("limitBytes", 1 << 40))
        with file.open("rb") as log:
            if "tailLines" in asked:
                log.seek(_start_of_tail(file, int(asked["tailLines"])))
            while left > 0:
                going_on = more()
                if data := log.read(min(left, 65536)):
                    self.wfile.write(data)
                    left -= len(data)
                elif not going_on:
                    return
                else:
                    time.sleep(0.05)

    def log_message(self, *_: object) -> None:
        """Quiet."""


def _start_of_tail(file: Path, lines: int) -> int:
    kept = file.read_bytes().splitlines(keepends=True)
    return sum(map(len, kept[: max(0, len(kept) - lines)]))


@contextmanager
def serving_logs(authority: Authority, logs: Logs) -> Iterator[int]:
    """The port, on loopback; who calls must show a certificate of the cluster's
    authority.
    """
    crt, key = authority.issue("kubelet", "played-kubelet", names=["127.0.0.1"])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.ca))
    context.load_cert_chain(crt, key)
    context.verify_mode = ssl.CERT_REQUIRED
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"logs": logs}))
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
