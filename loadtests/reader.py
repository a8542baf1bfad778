"""What a token stream says, from its bytes: HTTP/1.1 and server-sent events in pieces of
any size.

A piece that is exactly one chunk with one event of the known shape costs a comparison of
its beginning and its end; everything else goes through full parsing.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field
from typing import Any

clock = time.perf_counter_ns
TEXT_KEYS = ("content", "reasoning_content", "reasoning", "text")
TEXT = re.compile(rb'"(?:%s)":"((?:[^"\\]|\\.)*)"' % "|".join(TEXT_KEYS).encode())
NOT_LAST = b'"finish_reason":null'
OK = 200


@dataclass(slots=True)
class Stream:
    """One request and what came of it; all times in ns of ``clock``. ``intended`` is when
    it should have started.

    ``times``: the arrival of every token event, ``first_text`` of the first that had
    text. ``asked``: tokens that must come, 0 for any number.
    """

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
    asked: int = 0

    @property
    def tokens(self) -> int:
        """Output tokens as the server counts them."""
        return int((self.usage or {}).get("completion_tokens") or 0)

    def failure(self) -> str | None:
        """The kind of error, None for a good stream: [DONE] alone proves nothing."""
        if self.error:
            return self.error
        if self.status != OK:
            return f"status {self.status}" if self.status else "no answer"
        parts = {
            "no finish reason": self.reason,
            "no usage": self.usage,
            "no [DONE]": self.done,
            "zero tokens": self.first_text,
            "short of the asked length": self.tokens >= self.asked,
        }
        return next((kind for kind, there in parts.items() if not there), None)


class Parser:
    """``feed`` takes bytes as they come and says when the answer is over; where it is
    ``until_close``, the end of the connection says so.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.head, self.rest, self.event, self.body = True, b"", b"", b""
        self.left: int | None = None
        self.until_close = self.keep_alive = self.over = False
        self.prefix = self.suffix = b""
        self.bare = 0

    def feed(self, data: bytes, now: int) -> bool:
        """Take what arrived at ``now`` (ns of ``clock``); True when the answer is
        complete.
        """
        before = len(self.stream.times)
        try:
            if self.prefix and not self.rest and not self.event and self._alike(data, now):
                return False
            self.over = self._parse(self.rest + data, now)
        except ValueError:
            self.stream.error = self.stream.error or "not HTTP"
            self.keep_alive, self.over = False, True
        self.stream.coalesced += max(0, len(self.stream.times) - before - 1)
        return self.over

    def _alike(self, data: bytes, now: int) -> bool:
        """Count ``data`` when it is exactly one chunk with one token event like those
        before.
        """
        at = data.find(b"\r\n", 0, 9) + 2
        if not (
            data.startswith(self.prefix, at)
            and data.endswith(self.suffix)
            and int(data[: at - 2], 16) + at + 2 == len(data)
            and data.find(b"\n\n", at) == len(data) - 4
        ):
            return False
        stream = self.stream
        stream.times.append(now)
        if not stream.first_text and len(data) > at + self.bare:
            stream.first_text = now
        return True

    def _parse(self, data: bytes, now: int) -> bool:
        self.rest = b""
        while self.head:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self.rest = data
                return False
            self._headers(data[:end])
            data = data[end + 4 :]
        if self.until_close:
            self._payload(data, now)
            return False
        return self._chunks(data, now) if self.left is None else self._sized(data, now)

    def _headers(self, head: bytes) -> None:
        first, *lines = head.split(b"\r\n")
        self.stream.status = int(first.split(b" ", 2)[1])
        self.head = self.stream.status < OK
        fields = {
            name.strip().lower(): value.strip().lower() for name, _, value in (line.partition(b":") for line in lines)
        }
        self.keep_alive = fields.get(b"connection") != b"close"
        if self.head or b"chunked" in fields.get(b"transfer-encoding", b""):
            return
        self.until_close = b"content-length" not in fields and self.stream.status == OK
        self.keep_alive &= b"content-length" in fields
        self.left = int(fields.get(b"content-length", b"0"))

    def _sized(self, data: bytes, now: int) -> bool:
        self.body += data
        if len(self.body) < (self.left or 0):
            return False
        self.stream.end = now
        if self.stream.status == OK and self.body:
            self._payload(self.body + b"\n\n", now)
        return True

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
        text = self.event + payload
        *events, self.event = (text.replace(b"\r\n", b"\n") if b"\r" in text else text).split(b"\n\n")
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
            said = None
        if not isinstance(said, dict) or said.get("error"):
            stream.error = stream.error or ("error in the stream" if said else "not JSON")
            return
        stream.usage = said.get("usage") or stream.usage
        for choice in said.get("choices") or ():
            stream.reason = choice.get("finish_reason") or stream.reason
            delta = choice.get("delta")
            self._token(choice if delta is None else delta, line, now)

    def _token(self, delta: dict[str, Any], line: bytes, now: int) -> None:
        """Every chunk after the role chunk is a token, one with empty text too: half a
        character arrives as that.
        """
        key = next((k for k in TEXT_KEYS if delta.get(k) is not None), None)
        if (key is None and not delta.get("tool_calls")) or ("role" in delta and not delta.get(key or "")):
            return
        self.stream.times.append(now)
        if key is None or delta[key]:
            self.stream.first_text = self.stream.first_text or now
        if key and delta[key]:
            self._learn(line)

    def _learn(self, line: bytes) -> None:
        """The bytes around the text of a token that is not the last: the next ones will
        look the same. Reasoning may be there under two names.
        """
        texts = list(TEXT.finditer(line))
        if not texts:
            return
        start, end = texts[0].start(1), texts[-1].end(1)
        if NOT_LAST in line[end:] and b"role" not in line[:start]:
            self.prefix, self.suffix = line[:start], line[end:] + b"\n\n\r\n"
            self.bare = len(line) + 4 - sum(len(text[1]) for text in texts)
