"""One small question over HTTP: of the answer its status and headers, within a deadline
and a limit of bytes whatever the other side does.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException, parse_headers
from io import BytesIO
from typing import Any

HEAD_BYTES = 64 * 1024


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]


def ask(
    host: str, port: int, path: str, seconds: float = 5.0, body: Any = None, headers: Mapping[str, str] | None = None
) -> Answer | None:
    """The answer to GET, or to POST of ``body`` as JSON; None: there was none in time, or
    it was not HTTP.
    """
    data = b"" if body is None else json.dumps(body).encode()
    told = {
        "Host": f"{host}:{port}",
        "Content-Type": "application/json",
        "Content-Length": len(data),
        **(headers or {}),
    }
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.0", *(f"{k}: {v}" for k, v in told.items()), "", ""]
    try:
        return _answer(host, port, "\r\n".join(lines).encode() + data, time.monotonic() + seconds)
    except (OSError, ValueError, LookupError, HTTPException):  # nobody there, too late, or no HTTP
        return None


def _answer(host: str, port: int, request: bytes, deadline: float) -> Answer:
    with socket.create_connection((host, port), max(0.01, deadline - time.monotonic())) as line:
        line.sendall(request)
        head = b""
        while b"\r\n\r\n" not in head:
            line.settimeout(max(0.01, deadline - time.monotonic()))
            piece = line.recv(HEAD_BYTES)
            head += piece
            if not piece or len(head) > HEAD_BYTES or time.monotonic() > deadline:
                raise ValueError
    first, _, rest = head.partition(b"\r\n")
    return Answer(int(first.split()[1]), parse_headers(BytesIO(rest)))  # type: ignore[arg-type]
