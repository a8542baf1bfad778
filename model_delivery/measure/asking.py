"""One request of an OpenAI-compatible server, with a deadline for all of it and a limit
of bytes.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator

from model_delivery.measure.reader import LIMIT, Parser, Stream, clock
from model_delivery.measure.words import printable

READ = 65536
LABEL = re.compile(r"[A-Za-z0-9_]([-A-Za-z0-9_]{0,61}[A-Za-z0-9_])?")
PATH = re.compile(r"[-A-Za-z0-9._~!$&'()*+,;=:@%/]*")


@dataclass(frozen=True)
class Address:
    """A server's base address, taken apart; ``path`` has no slash at its end."""

    secure: bool
    host: str
    port: int
    path: str

    def head(self, path: str, length: int | str, headers: Mapping[str, str], method: str = "POST") -> str:
        """A request's head, but for the empty line after it where ``length`` is to be
        added.
        """
        host = f"[{self.host}]" if ":" in self.host else self.host
        fields = {"Host": f"{host}:{self.port}", "Accept-Encoding": "identity", **headers}
        fields |= {"Content-Type": "application/json", "Content-Length": str(length)}
        return f"{method} {self.path}{path} HTTP/1.1\r\n" + "\r\n".join(f"{k}: {v}" for k, v in fields.items())


def address(url: str) -> Address:
    """ValueError says what is wrong with ``url``, never what it holds."""
    parts = urlsplit(url if url.isprintable() else "")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("not an address: write http://HOST:PORT or https://HOST")
    if parts.username is not None or parts.password is not None:
        raise ValueError("an address holds no user and no password: name the key of the API")
    if parts.query or parts.fragment or not PATH.fullmatch(parts.path):
        raise ValueError("a base address has no query and no fragment, and a path of plain characters")
    if ":" not in parts.hostname and not all(map(LABEL.fullmatch, parts.hostname.removesuffix(".").split("."))):
        raise ValueError("no name of a host: write it in ASCII (punycode)")
    secure, port = parts.scheme == "https", parts.port
    if port == 0:
        raise ValueError("port 0 is none")
    return Address(secure, parts.hostname, port or (443 if secure else 80), parts.path.rstrip("/"))


def _checked(url: str) -> str:
    address(url)
    return url


BaseAddress = Annotated[str, AfterValidator(_checked)]


def ask(
    url: str,
    path: str,
    asked: dict[str, Any] | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    seconds: float = 30,
    limit: int = LIMIT,
    tokens: int | None = None,
) -> Stream:
    """GET, or POST of ``asked``; what goes wrong is in the Stream.

    ``tokens``: the answer is a stream, and does not end by itself when more than so many
    come; else it is in ``body``.
    """
    stream, to = Stream(clock()), address(url)
    parser = Parser(stream, whole=tokens is None, limit=limit)
    body, end = (b"" if asked is None else json.dumps(asked).encode()), time.monotonic() + seconds
    head = to.head(path, len(body), headers or {}, "GET" if asked is None else "POST")
    try:
        with _connected(to, seconds) as sock:
            sock.sendall(f"{head}\r\n\r\n".encode("latin-1") + body)
            while not parser.over:
                sock.settimeout(max(0.001, end - time.monotonic()))
                data = sock.recv(READ)
                if not data:
                    parser.closed(clock())
                    break
                parser.feed(data, clock())
                if tokens is not None and len(stream.times) > tokens:
                    stream.error = stream.error or f"it does not end: {len(stream.times)} pieces came"
                    break
                if time.monotonic() >= end:
                    raise TimeoutError
    except TimeoutError:
        stream.error = stream.error or f"timeout after {seconds:g} s"
    except OSError as error:
        stream.error, stream.said = stream.error or f"connection: {type(error).__name__}", printable(str(error))
    return stream


def _connected(to: Address, seconds: float) -> socket.socket:
    sock = socket.create_connection((to.host, to.port), timeout=seconds)
    if not to.secure:
        return sock
    try:
        return ssl.create_default_context().wrap_socket(sock, server_hostname=to.host)
    except BaseException:
        sock.close()
        raise
