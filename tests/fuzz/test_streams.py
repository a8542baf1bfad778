"""Answers of a server that is broken or hostile, cut into any pieces, read by the load
generator's connection and by the smoke test: each ends in time and is good only where an
independent reader of HTTP finds in it what a good stream has.
"""

from __future__ import annotations

import http.client
import io
import itertools
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import gevent
import pytest

from model_delivery.loadtests.arrivals import Plan
from model_delivery.loadtests.connection import Connection
from model_delivery.loadtests.recorder import Recorder
from model_delivery.measure.asking import address, ask
from model_delivery.measure.profile import Profile
from model_delivery.measure.reader import Stream
from model_delivery.steps.smoke import SmokeInput
from model_delivery.steps.smoke import run as smoke
from tests.fuzz.seeded import Dice, Late, play, shares
from tests.parts.raw_server import RawServer, answer, delta, usage

DEADLINE, PATIENCE, STALL = 30.0, 20.0, 0.5
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
KINDS = ("sound", "another", "another", "garbled", "garbled", "garbled", "headers", "endless")
MOST = 2 << 20
TEXTS = ("Paris", " ", "é", "\n\n", "data: [DONE]", '"', "\\", "\u2028", "[DONE]", "0\r\n\r\n", "x" * 3000, "😀")
NAMES = ("content", "reasoning_content", "reasoning", "text", "refusal")
WORDS: tuple[Any, ...] = (None, True, -1, 0, 1.5, 1e308, float("nan"), 10**400, "", "\0", "\ud800", [], {}, [None], {"a": 1}, "x" * 70_000)  # fmt: skip
HEADERS = (
    *(b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip", b"Transfer-Encoding: identity, chunked", b"Content-Length: -1"),
    *(b"Content-Length: 99999999999999999999", b"Content-Length: 1e3", b"Content-Length: 5", b"Content-Encoding: gzip"),
    *(b"Connection: close", b"Connection: upgrade", b"Retry-After: -1", b"Retry-After: " + b"9" * 5000, b"Retry-After: \xff"),
    *(b"Location: http://[", b": empty", b"no colon", b" folded: 1", b"X: \0\r", b"X: " + b"y" * 70_000, b"\xff\xfe: \xfd", b""),
)  # fmt: skip
STATUSES = (b"100 Continue", b"204 No", b"206 Partial", b"301 Moved", b"304 Same", b"401 Who", b"429 Later", b"500 Oh", b"999 No", b"2OO OK", b"-1", b"")  # fmt: skip
SIZES = (b"-6", b"0x5", b"+5", b"5_0", b" 5", b"FFFFFFFFFFFF", b"f" * 4000, b"", b"0", b"00", b"5;a=b", b"5 ", b"\xb2", b"1;" + b"a" * 70_000)  # fmt: skip
PIECES = (b"\r\n", b"\n\n", b"\r", b"\0", b"data:", b"data: {}\n\n", b"data: [DONE]\n\n", b"0\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"[" * 70_000, b"\xff", b": ping\n\n", b"event: error\n", b"\xef\xbb\xbf")  # fmt: skip


def events(dice: Dice, *, chat: bool) -> list[Any]:
    """What a good stream says; its usage counts the tokens that have come."""
    tokens, name = dice.randrange(1, 30), dice.choice(NAMES)
    said = [dice.choice(TEXTS) for _ in range(tokens)]
    made: list[Any] = [
        delta(**{name: text}) if chat else {"choices": [{"text": text, "finish_reason": None}]} for text in said
    ]
    made[-1]["choices"][0]["finish_reason"] = dice.choice(("stop", "length"))
    first = [delta(role="assistant", content="")] if chat else []
    return [*first, *made, usage(tokens), b"[DONE]"]


def written(dice: Dice, said: Iterable[Any]) -> list[bytes]:
    """As server-sent events, in one of the forms that servers use."""
    ends, compact = dice.choice((b"\n\n", b"\n\n", b"\r\n\r\n", b"\r\r")), dice.random() < 0.5
    start = dice.choice((b"data: ", b"data:", b"id: 7\ndata: "))
    form: Any = {"separators": (",", ":")} if compact else {}
    texts = (
        one if isinstance(one, bytes) else json.dumps(one, ensure_ascii=compact, **form).encode(errors="surrogatepass")
        for one in said
    )
    return [start.replace(b"\n", ends[: len(ends) // 2]) + text + ends for text in texts]


def framed(dice: Dice, pieces: list[bytes], more: bytes = b"", status: bytes = b"200 OK") -> list[bytes]:
    """As an answer of HTTP: the head, and what follows it in parts that may be spoilt."""
    head = b"HTTP/1.1 " + status + b"\r\nContent-Type: text/event-stream\r\n" + more
    match dice.randrange(4):
        case 0:
            return [head + b"Content-Length: %d\r\n\r\n" % len(b"".join(pieces)), *pieces]
        case 1:
            return [head + b"Connection: close\r\n\r\n", *pieces]
    ends = dice.choice(
        (b"0\r\n\r\n", b"0\r\n\r\n", b"000\r\n\r\n", b"0;x=y\r\n\r\n", b"0\r\nx-usage: 5\r\ny: z\r\n\r\n")
    )
    size = dice.choice((b"%x", b"%X", b"%04x", b"%x;a=b"))
    return [
        head + b"Transfer-Encoding: chunked\r\n\r\n",
        *(size % len(p) + b"\r\n" + p + b"\r\n" for p in pieces),
        ends,
    ]


def another(dice: Dice, said: list[Any]) -> list[Any]:
    """Some event is missing, doubled, or has another value somewhere."""
    at = dice.randrange(len(said))
    match dice.randrange(4):
        case 0:
            return said[:at] + said[at + 1 :]
        case 1:
            return [
                *said[:at],
                dice.choice(
                    (
                        *WORDS,
                        b"[",
                        b"[" * 70_000,
                        {"error": "no"},
                        {"error": {"message": "m" * 9000}},
                        {"choices": None},
                    )
                ),
                *said[at:],
            ]
        case 2:
            return dice.sample(said, len(said))
    here: Any = said[at] if not isinstance(said[at], bytes) else said[0]
    while True:
        key = dice.choice(list(here) if isinstance(here, dict) else range(len(here)))
        if not isinstance(here[key], dict | list) or not here[key] or dice.random() < 0.3:
            here[key] = dice.choice(WORDS)
            return said
        here = here[key]


def garbled(dice: Dice, parts: list[bytes]) -> list[bytes]:
    """Its bytes, spoilt on the way."""
    at = dice.randrange(len(parts))
    part, cut = parts[at], dice.randrange(len(parts[at]) + 1)
    match dice.randrange(6):
        case 0:
            return [*parts[:at], part[:cut]]
        case 1:
            return [*parts[:at], part[:cut] + dice.choice(PIECES) + part[cut:], *parts[at + 1 :]]
        case 2:
            return [*parts[:at], part[:cut] + part[cut + 1 :], *parts[at + 1 :]]
        case 3 if at:
            _, mark, rest = part.partition(b"\r\n")
            return [*parts[:at], dice.choice(SIZES) + mark + rest, *parts[at + 1 :]]
        case 4:
            return [*parts, *parts[: dice.randrange(len(parts))]]
    flipped = bytearray(part)
    for _ in range(dice.choice((1, 5))):
        flipped[dice.randrange(len(part))] = dice.randrange(256)
    return [*parts[:at], bytes(flipped), *parts[at + 1 :]]


@dataclass
class Answer:
    """What is sent to whoever asks: ``parts``, cut at ``edges``, with pauses in which
    each piece arrives alone. Then the server hangs up where it ``closes``; an ``endless``
    one repeats that piece instead.
    """

    kind: str
    parts: list[bytes]
    edges: list[int] = field(default_factory=list)
    closes: bool = True
    endless: bytes = b""

    @property
    def whole(self) -> bytes:
        return b"".join(self.parts)

    def __iter__(self) -> Iterator[bytes]:
        whole = self.whole
        for a, b in itertools.pairwise(sorted({0, len(whole), *self.edges})):
            yield whole[a:b]
            time.sleep(0.0005)
        while self.endless:
            yield self.endless
        if self.closes:
            raise ConnectionAbortedError


def sent(dice: Dice, *, chat: bool, may_stall: bool) -> Answer:
    said, kind = events(dice, chat=chat), dice.choice(KINDS)
    if kind == "another":
        said = another(dice, said)
    more, status = b"", b"200 OK"
    if kind == "headers":
        more = b"\r\n".join(dice.sample(HEADERS, dice.choice((1, 1, 3)))) + b"\r\n"
        more *= dice.choice((1, 1, 1, 1 + 200_000 // len(more)))
        status = dice.choice((b"200 OK", *STATUSES))
    parts = framed(dice, written(dice, said), more, status)
    if kind == "endless":
        at = dice.randrange(len(parts))
        again = dice.choice((parts[at], b"x" * 65536, b"\r\n", b"X: y\r\n", b": ping\n\n"))
        return Answer(kind, parts[:at], endless=again * (1 + 65536 // max(1, len(again))))
    if kind == "garbled":
        parts = garbled(dice, parts)
    edges = [dice.randrange(len(b"".join(parts)) + 1) for _ in range(dice.choice((0, 1, 5, 30)))]
    closes = b"Connection: close" in parts[0] or not may_stall or dice.random() < 0.9
    return Answer(kind, parts, edges, closes)


http.client._MAXHEADERS = 100_000  # type: ignore[attr-defined] # the reader's own limit is one of bytes


class Socket:
    """What http.client reads from."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def makefile(self, *_: object) -> io.BytesIO:
        return io.BytesIO(self.data)


def reference(data: bytes) -> list[dict[str, Any] | str]:
    """The events of an answer as Python's own client reads it; none where it is no
    answer.
    """
    told = http.client.HTTPResponse(Socket(data))  # type: ignore[arg-type]
    try:
        told.begin()
        body = told.read().decode("utf-8-sig", "replace")
        lines = "\n".join(body.replace("\r\n", "\n").replace("\r", "\n").split("\n"))
        texts = [line[5:].strip() for line in lines.split("\n") if line.startswith("data:")]
        return [text if text == "[DONE]" else json.loads(text) for text in texts] if told.status == 200 else []
    except (http.client.HTTPException, ValueError, RecursionError):
        return []


def is_good(stream: Stream, data: bytes) -> None:
    """What counts as good has been sent: an end, a reason, text, and the usage that is
    counted.
    """
    said = reference(data)
    chunks = [one for one in said if isinstance(one, dict)]
    choices = [choice for one in chunks for choice in one.get("choices") or () if choice]
    assert "[DONE]" in said, data[-300:]
    assert any(choice.get("finish_reason") for choice in choices), "no finish reason"
    assert any(choice.get("text") or choice.get("delta") for choice in choices), "no text"
    assert stream.tokens in [one["usage"].get("completion_tokens") for one in chunks if one.get("usage")], (
        "no such usage"
    )
    assert not [one for one in chunks if one.get("error")], "an error"
    assert len(stream.times) <= len(choices), "more tokens than came"
    assert not stream.error


@cache
def recorder() -> Recorder:
    made = Recorder(Plan("m", Profile(prompt_tokens=4, output_tokens=4)))
    made.close_at = 1 << 62
    return made


def loaded(url: str, patience: float) -> Stream:
    """By the load generator's connection, as one of its users."""
    to = address(url)
    connection = Connection(to.host, to.port, timeout=patience)
    with gevent.Timeout(DEADLINE / 2, Late("the load generator waits")):
        stream = connection.request(f"{to.head(CHAT, 2, {})}\r\n\r\n{{}}".encode(), limit=MOST)
    connection.close()
    recorder().sent += 1
    recorder().add(stream)
    return stream


def one(dice: Dice) -> None:
    """By the load generator, by one request, or by the whole smoke test."""
    by = dice.choice(("load", "load", "load", "ask", "ask", "smoke"))
    if by == "smoke":
        smoked(dice)
        return
    told = sent(dice, chat=dice.random() < 0.8, may_stall=True)
    patience = PATIENCE if told.closes or told.kind in ("sound", "endless") else STALL
    with RawServer({CHAT: told}) as server:
        if by == "load":
            stream = loaded(server.url, patience)
        else:
            stream = ask(server.url, CHAT, {}, seconds=patience, limit=MOST, tokens=100)
    failure = stream.failure()
    if told.kind == "sound":
        assert failure is None, stream.why() or failure
        assert len(stream.times) == stream.tokens
    if failure is None:
        is_good(stream, told.whole + told.endless)


MESSAGE = {
    "choices": [{"message": {"content": "Paris."}, "text": "Paris.", "finish_reason": "stop"}],
    "usage": usage(6)["usage"],
}


def smoked(dice: Dice) -> None:
    """One kind of its requests is answered so, the others soundly."""
    path = dice.choice((CHAT, CHAT, COMPLETIONS))
    told = sent(dice, chat=path == CHAT, may_stall=False)
    sound = {CHAT: answer(MESSAGE), COMPLETIONS: answer(MESSAGE)}
    others = {
        f"stream {p}": Answer("sound", framed(dice, written(dice, events(dice, chat=p == CHAT))))
        for p in (CHAT, COMPLETIONS)
    }
    spoilt = (
        f"stream {path}" if told.kind == "sound" else dice.choice((f"stream {path}", path, "/health", "/v1/models"))
    )
    with RawServer({**sound, **others, spoilt: told}) as server:
        report = smoke(SmokeInput(url=server.url, model_names=("m",), prompt="x", expect="Paris", max_tokens=16))
    wrong = {check.name: check.detail for check in report.checks if not check.passed and check.name != "unknown model"}
    assert told.kind != "sound" or not wrong, wrong
    assert not told.endless or wrong or b"Content-Length" in told.parts[0], "what never ends has passed"


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seeds", shares(), ids=str)
def test_an_answer_ends_in_time_and_is_good_only_when_it_was(seeds: range) -> None:
    recorder.cache_clear()
    play(seeds, one, DEADLINE)
    counts = recorder().tally.counts
    assert counts["good"] + sum(recorder().tally.errors.values()) == counts["requests"] == recorder().sent
