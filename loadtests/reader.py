"""Reads a token stream as it arrives: in the hub's callback, not in a greenlet that must be woken for every token.

One keep-alive connection; a read that is exactly one chunk with one event of the known shape costs a prefix comparison, everything
else goes through full parsing, which survives any fragmentation.
"""

from __future__ import annotations

import json
import socket
import ssl
import time
from dataclasses import dataclass, field
from typing import Any

import gevent.socket
from gevent.hub import Waiter, get_hub

clock = time.perf_counter_ns
TEXT_KEYS = ("content", "reasoning_content", "reasoning", "text")
NOT_FINAL = b'"finish_reason":null'


@dataclass(slots=True)
class Stream:
    """One request and what came of it; all times in ns of ``clock``. ``intended`` is when it should have started."""

    intended: int
    start: int = 0
    end: int = 0
    status: int = 0
    times: list[int] = field(default_factory=list)
    first_text: int = 0
    usage: dict[str, Any] | None = None
    reason: str | None = None
    done: bool = False
    error: str | None = None
    coalesced: int = 0

    def failure(self) -> str | None:
        """The kind of error, None for a good stream: [DONE] alone proves nothing."""
        if self.error:
            return self.error
        if self.status != 200:
            return f"status {self.status}"
        for kind, there in (
            ("no finish reason", self.reason),
            ("no usage", self.usage),
            ("no [DONE]", self.done),
            ("zero tokens", self.first_text),
        ):
            if not there:
                return kind
        return None


class Parser:
    """HTTP/1.1 and server-sent events from pieces of any size; ``feed`` says when the answer is over."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.head, self.rest, self.event, self.body = True, b"", b"", b""
        self.left: int | None = None
        self.keep_alive = True
        self.prefix = b""

    def feed(self, data: bytes, now: int) -> bool:
        """Take what arrived at ``now``; True when the answer is complete."""
        prefix = self.prefix
        if prefix and not self.rest and not self.event:
            at = data.find(b"\r\n", 0, 9)
            if (
                at > 0
                and data.startswith(prefix, at + 2)
                and NOT_FINAL in data
                and int(data[:at], 16) + at + 4 == len(data)
                and data.find(b"\n\n") == len(data) - 4
            ):
                self.stream.times.append(now)
                if not self.stream.first_text and data[at + 2 + len(prefix)] != 0x22:
                    self.stream.first_text = now
                return False
        before = len(self.stream.times)
        over = self._parse(self.rest + data, now)
        self.stream.coalesced += max(0, len(self.stream.times) - before - 1)
        return over

    def _parse(self, data: bytes, now: int) -> bool:
        self.rest = b""
        if self.head:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self.rest = data
                return False
            self._headers(data[:end])
            data = data[end + 4 :]
        if self.left is not None:
            return self._sized(data, now)
        return self._chunks(data, now)

    def _headers(self, head: bytes) -> None:
        self.head = False
        first, *lines = head.split(b"\r\n")
        self.stream.status = int(first.split(b" ", 2)[1])
        fields = {name.strip().lower(): value.strip().lower() for name, _, value in (line.partition(b":") for line in lines)}
        self.keep_alive = fields.get(b"connection") != b"close"
        if b"chunked" not in fields.get(b"transfer-encoding", b""):
            self.left = int(fields.get(b"content-length", b"0"))

    def _sized(self, data: bytes, now: int) -> bool:
        self.body += data
        if len(self.body) < (self.left or 0):
            return False
        self._whole(now)
        return True

    def _whole(self, now: int) -> None:
        self.stream.end = now
        if self.stream.status == 200 and self.body:
            self._payload(self.body, now)

    def _chunks(self, data: bytes, now: int) -> bool:
        at = 0
        while True:
            line = data.find(b"\r\n", at)
            if line < 0:
                break
            size = int(data[at:line].partition(b";")[0], 16)
            end = line + 2 + size
            if size == 0:
                if len(data) < line + 4:
                    break
                self.stream.end = self.stream.end or now
                return True
            if len(data) < end + 2:
                break
            self._payload(data[line + 2 : end], now)
            at = end + 2
        self.rest = data[at:]
        return False

    def _payload(self, payload: bytes, now: int) -> None:
        *events, self.event = (self.event + payload).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            for line in event.split(b"\n"):
                if line.startswith(b"data:"):
                    self._event(line, now)

    def _event(self, line: bytes, now: int) -> None:
        stream, text = self.stream, line[5:].strip()
        if text == b"[DONE]":
            stream.done, stream.end = True, now
            return
        try:
            said = json.loads(text)
        except ValueError:
            stream.error = stream.error or "not JSON"
            return
        if "error" in said:
            stream.error = stream.error or "error in the stream"
            return
        stream.usage = said.get("usage") or stream.usage
        for choice in said.get("choices", ()):
            stream.reason = choice.get("finish_reason") or stream.reason
            self._token(choice.get("delta", choice), line, now)

    def _token(self, delta: dict[str, Any], line: bytes, now: int) -> None:
        """Every chunk after the role chunk is a token, one with empty text too: half a character arrives as that."""
        key = next((k for k in TEXT_KEYS if delta.get(k) is not None), None)
        if (key is None and not delta.get("tool_calls")) or ("role" in delta and not delta.get(key or "")):
            return
        self.stream.times.append(now)
        if key and delta[key]:
            self.stream.first_text = self.stream.first_text or now
            at = line.find(b'"%s":"' % key.encode())
            if at > 0 and b"role" not in line[:at]:
                self.prefix = line[: at + len(key) + 4]
        elif key is None:
            self.stream.first_text = self.stream.first_text or now


class Connection:
    """One keep-alive socket. A request's bytes are read by the hub; its greenlet wakes once, at the end."""

    def __init__(self, host: str, port: int, *, tls: bool = False, timeout: float = 300) -> None:
        self.host, self.port, self.tls, self.timeout = host, port, tls, timeout
        self.sock: Any = None
        self.watcher: Any = None
        self.parser: Parser | None = None
        self.waiter: Any = None
        self.recv: Any = None

    def _connect(self) -> None:
        sock = gevent.socket.create_connection((self.host, self.port), timeout=30)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.tls:
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=self.host)
        self.sock = sock
        if not self.tls:
            self.recv = sock._sock.recv  # noqa: SLF001 the plain socket: gevent's own recv would wait
            self.watcher = get_hub().loop.io(sock.fileno(), 1)
            self.watcher.start(self._readable)

    def close(self) -> None:
        if self.watcher is not None:
            self.watcher.stop()
            self.watcher.close()
            self.watcher = None
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    def request(self, raw: bytes, intended: int | None = None) -> Stream:
        """Send ``raw`` and wait for the end of its answer; whatever goes wrong is in the Stream."""
        stream = Stream(intended or clock())
        fresh = self.sock is None
        try:
            if fresh:
                self._connect()
            self.parser = Parser(stream)
            stream.start = clock()
            self._send(raw)
            self._read_all() if self.tls else self._wait()
        except OSError as error:
            stream.error = stream.error or f"connection: {type(error).__name__}"
        stream.end = stream.end or clock()
        if stream.error or (self.parser and not self.parser.keep_alive):
            self.close()
        self.parser = None
        return stream

    def _send(self, raw: bytes) -> None:
        self.sock.sendall(raw)

    def _wait(self) -> None:
        self.waiter = Waiter(get_hub())
        timer = get_hub().loop.timer(self.timeout)
        timer.start(self.waiter.switch, "timeout")
        try:
            error = self.waiter.get()
        finally:
            timer.stop()
            timer.close()
            self.waiter = None
        if error and self.parser is not None:
            self.parser.stream.error = self.parser.stream.error or error

    def _read_all(self) -> None:
        self.sock.settimeout(self.timeout)
        while self.parser is not None:
            data = self.sock.recv(65536)
            if not data:
                self.parser.stream.error = "closed early"
                return
            if self.parser.feed(data, clock()):
                return

    def _readable(self) -> None:
        now = clock()
        try:
            data = self.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            self._over(f"connection: {type(error).__name__}")
            return
        if not data:
            self._over("closed early")
        elif self.parser is not None and self.parser.feed(data, now):
            self._over(None)

    def _over(self, error: str | None) -> None:
        if self.waiter is not None:
            self.waiter.switch(error)
        elif error:
            self.close()
