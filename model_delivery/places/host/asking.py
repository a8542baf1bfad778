"""One small question over HTTP, answered within a deadline and a limit of bytes whatever
the other side does.
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
    body: bytes = b""


def ask(
    host: str,
    port: int,
    path: str,
    seconds: float = 5.0,
    body: Any = None,
    headers: dict[str, str] | None = None,
    most: int = 0,
) -> Answer | None:
    """The answer to GET, or to POST of ``body`` as JSON; None: there was none in time, or
    it was not HTTP. Of its body not more than ``most`` bytes are read.
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
        return _answer(host, port, "\r\n".join(lines).encode() + data, time.monotonic() + seconds, most)
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, HTTPException):
        return None


def _answer(host: str, port: int, request: bytes, deadline: float, most: int) -> Answer:
    with socket.create_connection((host, port), max(0.01, deadline - time.monotonic())) as line:
        line.sendall(request)
        text = b""
        while (ends := text.find(b"\r\n\r\n")) < 0 or len(text) < ends + 4 + most:
            line.settimeout(max(0.01, deadline - time.monotonic()))
            piece = line.recv(HEAD_BYTES)
            text += piece
            if time.monotonic() > deadline or (ends < 0 and (not piece or len(text) > HEAD_BYTES)):
                raise ValueError
            if not piece:
                break
    first, _, rest = text.partition(b"\r\n")
    told = BytesIO(rest)
    return Answer(int(first.split()[1]), parse_headers(told), told.read(most))  # type: ignore[arg-type]
