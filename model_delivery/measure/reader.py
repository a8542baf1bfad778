"""What an answer says, from its bytes: HTTP/1.1, JSON and server-sent events in pieces of
any size. One reader for the smoke test and the load test.

A piece that is exactly one chunk with one event of the known shape costs a comparison of
its beginning and its end; everything else goes through full parsing.
"""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import pairwise
from typing import Any

from model_delivery.measure.words import fault, message, printable, spoken

clock = time.perf_counter_ns
TEXT = re.compile(rb'"(?:content|reasoning_content|reasoning|text)":"((?:[^"\\]|\\.)*)"')
PLAIN = rb'[^"\\\x00-\x1f\x80-\xff]*'
UTF8 = (
    rb"[\xc2-\xdf][\x80-\xbf]|"
    rb"(?:\xe0[\xa0-\xbf]|[\xe1-\xef][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]|[\xf1-\xf3][\x80-\xbf]{2})[\x80-\xbf]"
)
STRING = PLAIN + rb'(?:(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})|' + UTF8 + rb")" + PLAIN + rb")*"  # as JSON may write one
ONE = re.compile(STRING).fullmatch
NOT_LAST = b'"finish_reason":null'
STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5]\d\d)(?: .*)?")
HEX = b"0123456789abcdefABCDEF"
BOM = b"\xef\xbb\xbf"
FIELDS = {b"data", b"event", b"id", b"retry", b""}  # of server-sent events; a comment has no name
CALLS = ("tool_calls", "function_call")
COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")
OK = 200
LIMIT, LONGEST_HEAD, LONGEST_EVENT, KEPT, LENGTHS = 16 << 20, 1 << 16, 1 << 20, 1 << 16, 32
MOST_TOKENS, MOST_SECONDS = 10**9, 3600
GONE = "closed early"
NOT_HTTP, NOT_JSON, NOT_STREAM, TOO_LARGE = "not HTTP", "not JSON", "not a stream", "too large"


@dataclass(slots=True)
class Stream:
    """One request and what came of it; all times in ns of ``clock``. ``intended`` is when
    it should have started.

    ``times``: the arrival of every token event, ``first_text`` of the first that had
    text. ``asked``: tokens that must come, 0 for any number. ``models``: whose answer it
    is, as it says. ``said``: what the server says of its refusal; ``retry_after``: in how
    many s it wants to be asked again. ``body``: of an answer that is no stream.
    """

    intended: int
    start: int = 0
    end: int = 0
    status: int = 0
    times: list[int] = field(default_factory=list)
    first_text: int = 0
    usage: dict[str, int] | None = None
    reason: str | None = None
    done: bool = False
    error: str | None = None
    said: str = ""
    retry_after: float = 0
    coalesced: int = 0
    asked: int = 0
    models: set[str] = field(default_factory=set)
    body: bytearray = field(default_factory=bytearray)

    @property
    def tokens(self) -> int:
        """Output tokens as the server counts them."""
        return (self.usage or {}).get("completion_tokens", 0)

    def failure(self) -> str | None:
        """The kind of error, None for a good stream: [DONE] alone proves nothing."""
        parts = {
            "no finish reason": self.reason,
            "no usage": "completion_tokens" in (self.usage or {}),
            "no [DONE]": self.done,
            "zero tokens": self.first_text and self.tokens,
            "short of the asked length": self.tokens >= self.asked,
            "usage beyond the asked length": not self.asked or self.tokens <= self.asked,
        }
        return self.refusal() or next((kind for kind, there in parts.items() if not there), None)

    def refusal(self) -> str | None:
        """What ended it before it could say anything, or while it did."""
        if self.status not in (0, OK):
            return f"status {self.status}"
        return self.error or (None if self.status else "no answer")

    def why(self) -> str:
        """``refusal`` with the server's own words."""
        return ": ".join(filter(None, (self.refusal(), self.said)))


class Parser:
    """``feed`` takes bytes as they come and says when the answer is over; where only the
    end of the connection says so, ``closed`` does.

    ``whole``: the answer is no stream, its bytes are kept. ``limit``: of bytes.
    """

    def __init__(self, stream: Stream, *, whole: bool = False, limit: int = LIMIT) -> None:
        self.stream, self.whole, self.room = stream, whole, limit
        self.head, self.rest, self.event = True, b"", b""
        self.left = 0
        self.fields: dict[bytes, bytes] = {}
        self.chunked = self.until_close = self.keep_alive = self.over = False
        self.told = self.after_return = self.between = False
        self.prefix = self.suffix = self.odd = b""
        self.bare, self.varies = 0, ONE
        self.begins: dict[int, bytes] = {}

    def feed(self, data: bytes, now: int) -> bool:
        """Take what arrived at ``now`` (ns of ``clock``); True when the answer is
        complete. Whatever it is made of, nothing is raised.
        """
        try:
            self.room -= len(data)
            if self.between and self.room >= 0 and self._alike(data, now):
                return False
            before = len(self.stream.times)
            self.over = self._parse(self.rest + data, now) if self.room >= 0 else self._broken(TOO_LARGE)
            self.stream.coalesced += max(0, len(self.stream.times) - before - 1)
            self.between = bool(self.prefix) and not (self.left or self.rest or self.event)
        except Exception:  # noqa: BLE001 - bytes of anybody's making
            self.over = self._broken(NOT_HTTP)
        return self.over

    def closed(self, now: int) -> None:
        """The connection has ended."""
        if not self.until_close:
            self._broken(GONE)
        if not self.head:
            self._ended(b"", now)

    def _broken(self, kind: str) -> bool:
        self.stream.error = self.stream.error or kind
        self.keep_alive = False
        return True

    def _alike(self, data: bytes, now: int) -> bool:
        """Count ``data`` when it is exactly one chunk with one token event like those
        before, but for its text.
        """
        size, suffix = len(data), self.suffix
        begin = self.begins.get(size) or self._begin(data)
        if not (begin and data.startswith(begin) and data.endswith(suffix)):
            return False
        if not self.varies(data, at := len(begin), size - len(suffix)):
            return False
        self.stream.times.append(now)
        if not self.stream.first_text and size > at - len(self.prefix) + self.bare:
            self.stream.first_text = now
        return True

    def _begin(self, data: bytes) -> bytes:
        """How a chunk that is as long as ``data`` and alike begins, its own size before
        what it shares with the others; empty: ``data`` is no such chunk.
        """
        at = data.find(b"\r\n", 0, 9) + 2
        number = data[: at - 2]
        if not data.startswith(self.prefix, at) or number.translate(None, HEX) or int(number, 16) + at + 2 != len(data):
            return b""
        if len(self.begins) >= LENGTHS:
            self.begins.clear()
        begin = self.begins[len(data)] = data[: at + len(self.prefix)]
        return begin

    def _parse(self, data: bytes, now: int) -> bool:
        self.rest = b""
        while self.head:
            end = data.find(b"\r\n\r\n")
            if end > LONGEST_HEAD or (end < 0 and len(data) > LONGEST_HEAD) or data[:7] != b"HTTP/1."[: len(data)]:
                raise ValueError("no head of HTTP/1")
            if end < 0:
                self.rest = data
                return False
            self._headers(data[:end])
            data = data[end + 4 :]
        if self.chunked:
            return self._chunks(data, now)
        if self.until_close:
            self._payload(data, now)
            return False
        mine, rest = data[: self.left], data[self.left :]
        self.left -= len(mine)
        self._payload(mine, now)
        return not self.left and self._ended(rest, now)

    def _headers(self, head: bytes) -> None:
        first, *lines = head.split(b"\r\n")
        status = STATUS.fullmatch(first)
        if status is None:
            raise ValueError("no status line")
        self.stream.status = int(status[2])
        self.head = self.stream.status < OK
        fields = self.fields = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)
        }
        closes = fields.get(b"connection", b"close" if status[1] == b"0" else b"").lower() == b"close"
        self.chunked = b"chunked" in fields.get(b"transfer-encoding", b"").lower()
        framed = self.chunked or b"content-length" in fields or self.stream.status in (204, 304)
        self.keep_alive = framed and not closes
        self.until_close = not framed and (closes or self.stream.status == OK)
        length = fields.get(b"content-length", b"0") if not self.chunked else b"0"
        if not length.isdigit() or len(length) > 12:
            raise ValueError("no length")
        self.left = int(length) if self.stream.status not in (204, 304) else 0
        if after := fields.get(b"retry-after"):
            self.stream.retry_after = _seconds(after.decode("latin-1"))
        if (packed := fields.get(b"content-encoding", b"identity").lower()) not in (b"identity", b""):
            self.stream.error = "compressed"
            self.stream.said = f"content-encoding: {printable(packed)}, which was not asked for"

    def _chunks(self, data: bytes, now: int) -> bool:
        at = 0
        while at < len(data):
            if self.left:  # of the chunk and its line end
                piece = data[at : at + self.left]
                at, self.left = at + len(piece), self.left - len(piece)
                if not self.left and not b"\r\n".endswith(piece[-2:]):
                    raise ValueError("a chunk that is longer than it says")
                self._payload(piece[: len(piece) - max(0, 2 - self.left)], now)
                continue
            line = data.find(b"\r\n", at)
            if line < 0:
                break
            text = data[at:line]
            if b";" in text:
                text = text.partition(b";")[0].rstrip()
            if not text or len(text) > 12 or text.translate(None, HEX):
                raise ValueError("no size of a chunk")
            size = int(text, 16)
            if size == 0:
                end = data.find(b"\r\n\r\n", line)
                if end < 0:
                    break
                return self._ended(data[end + 4 :], now)
            at, end = line + 2, line + 2 + size
            if data[end : end + 2] == b"\r\n":
                self._payload(data[at:end], now)
                at = end + 2
            else:
                self.left = size + 2
        self.rest = data[at:]
        if len(self.rest) > LONGEST_HEAD:
            raise ValueError("a line without end")
        return False

    def _payload(self, payload: bytes, now: int) -> None:
        if not self.told and self._kept(payload):
            return
        if payload and (self.after_return or b"\r" in payload):
            payload = self._lines(payload)
        *events, self.event = (self.event + payload).split(b"\n\n")
        if len(self.event) > LONGEST_EVENT:
            self.event, self.room = b"", -1
        for event in events:
            self._event(event, now)

    def _kept(self, payload: bytes) -> bool:
        """Keep what may say why there is no stream; whether there is none."""
        stream = self.stream
        if stream.error == "compressed":
            return True
        stream.body += payload if self.whole else payload[: KEPT - len(stream.body)]
        return self.whole or stream.status != OK

    def _lines(self, payload: bytes) -> bytes:
        r"""Any of \r\n, \r and \n ends a line, whatever piece its halves come in."""
        if self.after_return and payload.startswith(b"\n"):
            payload = payload[1:]
        self.after_return = payload.endswith(b"\r")
        return payload.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _event(self, event: bytes, now: int) -> None:
        stream, named = self.stream, False
        if event.startswith(b"data:") and b"\n" not in event:
            data = [text := event[5:].strip()]
        else:
            lines = event.removeprefix(BOM).split(b"\n")
            self.odd = self.odd or next((line for line in lines if line.partition(b":")[0].strip() not in FIELDS), b"")
            data = [line[5:].strip() for line in lines if line.startswith(b"data:")]
            text, named = b"\n".join(data), any(re.fullmatch(rb"event:\s*error\s*", line) for line in lines)
        self.told |= bool(data)
        if self.odd and self.told and not stream.error:
            stream.error, stream.said = NOT_STREAM, message(self.odd)
        if not data:
            return
        if text == b"[DONE]":
            stream.done, stream.end = True, now
            return
        try:
            said = json.loads(text)
            error = said if named else fault(said)
            if error is None:
                self._chunk(said, event, now)
        except Exception:  # noqa: BLE001 - JSON of anybody's making
            error = None
            stream.error = stream.error or NOT_JSON
            stream.said = stream.said or printable(text)
        if error is not None:
            stream.error = stream.error or "error in the stream"
            stream.said = stream.said or message(error)

    def _chunk(self, said: dict[str, Any], event: bytes, now: int) -> None:
        """Raises whatever comes of a chunk that is none."""
        if model := said.get("model"):
            self.stream.models.add(model)
        if usage := said.get("usage"):
            self.stream.usage = {key: _count(usage[key]) for key in COUNTS if usage.get(key) is not None}
        for choice in said.get("choices") or ():
            if choice is None:
                continue
            if reason := choice.get("finish_reason"):
                if not isinstance(reason, str):
                    raise TypeError("a finish reason is a word")
                self.stream.reason = reason
            self._token(choice["delta"] or {} if "delta" in choice else {"text": choice.get("text")}, event, now)

    def _token(self, delta: dict[str, Any], event: bytes, now: int) -> None:
        """Text of any kind and a tool call are tokens. Empty text is one too (half a
        character arrives as that), but not beside a role.
        """
        says = delta.get("content") or delta.get("text")
        if not says:
            texts = spoken(delta)
            says = any(texts) or any(delta.get(key) for key in CALLS)
            if not says and (delta.get("role") or not texts):
                return
        self.stream.times.append(now)
        if says:
            self.stream.first_text = self.stream.first_text or now
            self._learn(event)

    def _learn(self, line: bytes) -> None:
        """The bytes around the text of a token that is not the last: the next ones will
        look the same. Reasoning may be there under two names.
        """
        texts = list(TEXT.finditer(line))
        if not texts:
            return
        start, end = texts[0].start(1), texts[-1].end(1)
        if NOT_LAST in line[end:] and b"role" not in line[:start] and b"\n" not in line:
            if len(texts) > 1:
                between = (line[one.end(1) : other.start(1)] for one, other in pairwise(texts))
                self.varies = re.compile(STRING.join((b"", *map(re.escape, between), b""))).fullmatch
            else:
                self.varies = ONE
            self.prefix, self.suffix = line[:start], line[end:] + b"\n\n\r\n"
            self.begins.clear()
            self.bare = len(line) + 4 - sum(len(text[1]) for text in texts)

    def _ended(self, rest: bytes, now: int) -> bool:
        self.keep_alive &= not rest
        stream, last, self.event = self.stream, self.event, b""
        if last and not stream.error:
            self._event(last, now)
        stream.end = stream.end or now
        if self.room < 0:
            self._broken(TOO_LARGE)
        if stream.status != OK or not (self.told or self.whole):
            self._refused()
        return True

    def _refused(self) -> None:
        """Say what came instead of a stream."""
        stream, said = self.stream, None
        text = printable(stream.body)
        with suppress(Exception):
            said = json.loads(stream.body)
        error = said.get("error") if isinstance(said, dict) else None
        words = message(error or said) or text
        if location := self.fields.get(b"location"):
            words = f"to {printable(location)}"
        elif stream.status == OK:
            stream.error = stream.error or ("an error with status 200" if error else NOT_STREAM)
            words = words if error else f"{printable(self.fields.get(b'content-type', b'no type'))}: {text}"
        stream.said = stream.said or words


def _count(value: Any) -> int:
    count = int(value)
    if not 0 <= count <= MOST_TOKENS:
        raise ValueError("no number of tokens")
    return count


def _seconds(text: str) -> float:
    """A Retry-After: seconds or a date; 0 for neither."""
    wait = float(text) if text.isdecimal() and len(text) < 10 else 0.0
    with suppress(ValueError, TypeError, OverflowError):
        wait = wait or (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    return min(max(0.0, wait), MOST_SECONDS)
