"""Whatever bytes a server sends, the reader raises nothing, ends, and says what it
was.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from itertools import pairwise
from typing import Any

import pytest

from model_delivery.loadtests.arrivals import Plan
from model_delivery.loadtests.recorder import Recorder
from model_delivery.measure.asking import address, ask
from model_delivery.measure.profile import Profile
from model_delivery.measure.reader import Parser, Stream
from tests.parts.raw_server import CHUNKED, END, RawServer, answer, chunk, delta, event, stream, usage

OPEN = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
GOOD = [delta(content="x"), delta("stop", content="y"), usage(2), b"[DONE]"]


def read(*pieces: bytes, closed: bool = False) -> Stream:
    one = Stream(1)
    parser = Parser(one)
    for at, piece in enumerate(pieces, 2):
        if parser.feed(piece, at):
            break
    if closed:
        parser.closed(99)
    return one


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (OPEN + b"-6\r\n", "not HTTP"),
        (OPEN + b"0x6\r\nabcdef\r\n", "not HTTP"),
        (OPEN + b"4\r\nabcdef\r\n", "not HTTP"),
        (OPEN + b"1" * 100_000, "not HTTP"),
        (b"HELLO\r\n\r\n", "not HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not HTTP"),
        (b"HTTP/1.1 banana\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000, "not HTTP"),
        (stream({"choices": [1]}, *GOOD), "not JSON"),
        (stream({"choices": 5}, *GOOD), "not JSON"),
        (stream({"choices": [{"delta": "hi"}]}, *GOOD), "not JSON"),
        (stream({"choices": [], "usage": [1]}, *GOOD), "not JSON"),
        (stream(b'{"choices": [], "usage": {"completion_tokens": 1e999}}', *GOOD), "not JSON"),
        (stream(b'{"choices": [], "usage": {"completion_tokens": -4}}', *GOOD), "not JSON"),
        (stream(b"[" * 100_000, *GOOD), "not JSON"),
        (stream([1], *GOOD), "not JSON"),
        (stream({"choices": [{"delta": {}, "finish_reason": {"a": 1}}]}, *GOOD), "not JSON"),
    ],
)
def test_what_is_no_http_or_no_json_is_told_as_that(data: bytes, kind: str) -> None:
    assert read(data).failure() == kind


@pytest.mark.parametrize(
    "first", [{"choices": None}, {"choices": [None]}, {"choices": [{"delta": None}]}, {"id": "x", "error": None}]
)
def test_a_chunk_that_says_nothing_harms_nothing(first: Any) -> None:
    assert read(stream(first, *GOOD)).failure() is None


def test_a_line_without_end_and_a_body_without_end_are_too_large() -> None:
    for head, piece in ((CHUNKED, chunk(b"x" * 65536)), (OPEN + b"80000000\r\n", b"x" * 65536)):
        one, began = Stream(1), time.monotonic()
        parser = Parser(one)
        pieces = 1
        parser.feed(head, 1)
        while not parser.feed(piece, 2):
            pieces += 1
        assert one.failure() == "too large"
        assert pieces <= 257
        assert time.monotonic() - began < 5


def test_any_bytes_end_without_an_exception() -> None:
    dice, whole = random.Random(7), stream(delta(role="assistant", content=""), *GOOD)
    parts = [b"\r\n", b"\n\n", b"data:", b"0", b"-", b"[", b"null", b"\xff", b"HTTP/1.1 200 OK", b"data: {}\n\n"]
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(dice.randrange(4)):
            at = dice.randrange(len(data))
            data[at : at + dice.randrange(9)] = dice.choice(parts)
        edges = sorted({0, len(data), *(dice.randrange(len(data)) for _ in range(3))})
        read(*(bytes(data[a:b]) for a, b in pairwise(edges)), closed=True).failure()


def test_the_first_reasoning_is_the_first_token_whatever_stands_beside_it() -> None:
    for empty in ({"role": "assistant", "content": ""}, {"content": ""}, {"content": None}):
        thoughts = [{**empty, "reasoning": f"r{n}"} for n in range(3)]
        events = [delta(role="assistant", content=""), *(delta(**t) for t in thoughts), *GOOD]
        one = read(CHUNKED, *map(event, events), END)
        assert one.failure() is None
        assert one.first_text == 4, empty
        assert one.times == [4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    "said",
    [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{}"}}],
        },
        {"reasoning_content": "hm"},
        {"refusal": "no"},
        {"thinking": "hm"},
        {"content": [{"type": "thinking", "thinking": "hm"}]},
        {"function_call": {"name": "f"}},
    ],
)
def test_text_of_any_kind_and_a_tool_call_are_tokens(said: dict[str, Any]) -> None:
    one = read(stream(delta(**said), delta("stop"), usage(1), b"[DONE]"))
    assert (one.failure(), len(one.times)) == (None, 1)


def test_a_role_chunk_is_no_token_and_half_a_character_is_one() -> None:
    one = read(stream(delta(role="assistant", content=""), delta(content=""), *GOOD))
    assert len(one.times) == 3


def test_a_trailer_ends_with_the_answer_and_not_in_the_next_one() -> None:
    body = CHUNKED + b"".join(map(event, GOOD)) + b"0\r\nx-us"
    one = Stream(1)
    parser = Parser(one)
    assert [parser.feed(piece, 2) for piece in (body, b"age: 5\r\n", b"\r\n")] == [False, False, True]
    assert one.failure() is None
    assert parser.keep_alive


@pytest.mark.parametrize("ends", [b"\r\n\r\n", b"\r\r", b"\n\n"])
def test_any_line_end_and_a_byte_order_mark_are_read(ends: bytes) -> None:
    pieces = [chunk(b"data: " + (e if isinstance(e, bytes) else json.dumps(e).encode()) + ends) for e in GOOD]
    one = read(CHUNKED + chunk(b"\xef\xbb\xbf"), *pieces, END)
    assert (one.failure(), one.times) == (None, [3, 4])


def test_a_stream_with_a_length_is_timed_as_it_comes() -> None:
    events = [b"data: " + json.dumps(e).encode() + b"\n\n" for e in GOOD[:3]]
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(b''.join(events)) + 14}\r\n\r\n".encode()
    one = read(head, *events, b"data: [DONE]\n\n")
    assert (one.failure(), one.times) == (None, [3, 4])


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (answer({"error": {"message": "slow down"}}, "429 Too Many Requests", "Retry-After: 2"), "status 429: slow down"),
        (answer({"detail": "no such route"}, "404 Not Found"), "status 404: no such route"),
        (answer(b"", "307 Temporary Redirect", "Location: /other\x1b[2J"), "status 307: to /other [2J"),
        (answer({"error": {"message": "overloaded"}}), "an error with status 200: overloaded"),
        (answer({"error": "overloaded"}), "an error with status 200: overloaded"),
        (answer(b"<html>Please log in", "200 OK", "Content-Type: text/html"), "not a stream: text/html: <html>Please log in"),
        (answer({"choices": []}, "200 OK", "Content-Type: application/json"), 'not a stream: application/json: {"choices": []}'),
        (answer(b"\x1f\x8b\x08", "200 OK", "Content-Encoding: gzip"), "compressed: content-encoding: gzip, which was not asked for"),
        (stream(delta(content="x"), {"error": {"message": "engine died"}}), "error in the stream: engine died"),
        (stream(delta(content="x"), {"object": "error", "message": "boom"}), "error in the stream: boom"),
        (CHUNKED + chunk(b'event: error\ndata: {"message": "boom"}\n\n') + END, "error in the stream: boom"),
    ],
)  # fmt: skip
def test_a_refusal_is_told_in_the_servers_own_words(data: bytes, why: str) -> None:
    assert read(data).why() == why


def test_retry_after_is_seconds_or_a_date_and_nothing_else() -> None:
    waits = [read(answer(b"", "429 No", f"Retry-After: {text}")).retry_after for text in ("2", "soon", "-1", "9" * 30)]
    assert waits == [2, 0, 0, 0]
    assert read(answer(b"", "429 No", "Retry-After: Fri, 31 Dec 2199 23:59:59 GMT")).retry_after == 3600


def test_a_request_is_counted_as_good_or_as_an_error_whatever_its_usage_says() -> None:
    last: dict[str, Any]
    recorder = Recorder(Plan("m", Profile(prompt_tokens=4, output_tokens=4)))
    recorder.close_at = 10**12
    for number in range(10):
        one = Stream(1000 + number, start=1000 + number)
        last = {"choices": [], "usage": "n/a" if number % 2 else {"completion_tokens": 2, "prompt_tokens": 1}}
        Parser(one).feed(stream(*GOOD[:2], last, b"[DONE]"), 5000 + number)
        recorder.sent += 1
        recorder.add(one)
    recorder.tally.counts["sent"] = recorder.sent
    assert recorder.tally.counts["good"] == 5
    assert recorder.tally.errors == {"not JSON": 5}
    assert recorder.tally.complete()


def test_one_request_has_one_deadline_however_slowly_its_bytes_come() -> None:
    with RawServer(
        {"/drip": itertools.chain([b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"], itertools.cycle([0.02, b" "]))}
    ) as server:
        began = time.monotonic()
        assert ask(server.url, "/drip", seconds=0.5).why() == "timeout after 0.5 s"
        assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    "url",
    ["foo", "http://", "ftp://h", "http://h:port", "http://h:99999", "http://h:0", "http://u:p@h", "http://h/a?b", "http://h/a b",  "http://" + "a" * 64 + ".com", "http://h\u00f6st", "http://h/\r\nX:y", "//h", ""],
)  # fmt: skip
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"address|host|ort"):
        address(url)


def test_an_address_of_ipv6_and_a_path_are_asked_as_they_are() -> None:
    head = address("https://[::1]:8443/v2/").head("/v1/models", 0, {})
    assert head.startswith("POST /v2/v1/models HTTP/1.1\r\nHost: [::1]:8443\r\n")


def alike(text: bytes) -> bytes:
    """A chunk that begins and ends as its neighbours do."""
    said = b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}]}\n\n'
    return chunk(said % text)


TWICE = b'data: {"choices":[{"delta":{"reasoning":"%s","reasoning_content":"%s"},"finish_reason":null}]}\n\n'
LATER = [*map(event, GOOD[1:]), END]


@pytest.mark.parametrize(
    ("piece", "kind"),
    [
        (alike(b'x"},"finish_reason":null}],"error":{"message":"died"},"z":[{"index":0,"delta":{"content":"x'), "error in the stream"),
        (alike(b'x"},"finish_reason":"abort"},{"index":1,"delta":{"content":"x'), "error in the stream"),
        *((alike(text), "not JSON") for text in (b'a"b', b"\xff", b"\xe0\x80\x80", b"\xf5\x80\x80\x80", b"\xe4\xb8", b"\\x", b"\\", b"\\u12", b"\t", b"\0")),
    ],
)  # fmt: skip
def test_an_error_in_a_chunk_that_looks_like_its_neighbours_is_told(piece: bytes, kind: str) -> None:
    assert read(CHUNKED, alike(b"a"), alike(b"b"), piece, alike(b"c"), *LATER).failure() == kind


@pytest.mark.parametrize("text", ["", "a", "你好", "é😀", '\\"\\n\\u00e9', "\U0010ffff"])
def test_any_text_of_a_chunk_that_looks_like_its_neighbours_is_a_token(text: str) -> None:
    one = read(CHUNKED, alike(b"a"), alike(text.encode()), *LATER)
    assert (one.failure(), one.times) == (None, [3, 4, 5])


def test_reasoning_under_two_names_hides_no_error_between_them() -> None:
    hides = (b"a", b'x"},"error":"died","delta":{"reasoning_content":"b')
    for texts, kind in (((b"a", b"a"), None), ((b'"', b"a"), "not JSON"), (hides, "error in the stream")):
        one = read(CHUNKED, chunk(TWICE % (b"x", b"x")), chunk(TWICE % texts), *LATER)
        assert one.failure() == kind, texts


@pytest.mark.parametrize("reason", ["abort", "error", "content_filter", "cancelled", "insufficient_system_resource"])
def test_an_answer_that_was_broken_off_is_no_good_one(reason: str) -> None:
    one = read(stream(GOOD[0], delta(reason), *GOOD[2:]))
    assert one.why() == f"error in the stream: finish reason '{reason}'"


@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls", "function_call", "eos_token", "stop_sequence"])
def test_an_answer_that_came_to_an_end_is_a_good_one(reason: str) -> None:
    assert read(stream(GOOD[0], delta(reason), *GOOD[2:])).failure() is None


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"code": 500, "message": "EngineCore died", "type": "InternalServerError"}, "EngineCore died"),
        ({"detail": "Internal error"}, "Internal error"),
        ({"errors": [{"message": "x"}]}, '[{"message": "x"}]'),
        ({"error": {"error": {"message": "deep"}}}, "deep"),
        ({"status": "failed"}, '{"status": "failed"}'),
        ({"choices": [], "message": "died", "code": 500}, "died"),
        ({"choices": [{"index": 0, "delta": {}, "error": {"message": "upstream"}}]}, "upstream"),
        ({"object": "error"}, '{"object": "error"}'),
    ],
)
def test_an_error_of_any_form_amid_a_stream_is_told(said: Any, words: str) -> None:
    assert read(stream(GOOD[0], said, *GOOD[1:])).why() == f"error in the stream: {words}"


@pytest.mark.parametrize("first", [True, False])
def test_what_is_no_event_amid_a_stream_is_told(first: bool) -> None:
    for text in (b"Traceback (most recent call last):\n  boom\n\n", b'{"error": "died"}\n\n', b"<html>\n\n"):
        pieces = [chunk(text), event(GOOD[0])] if first else [event(GOOD[0]), chunk(text)]
        one = read(CHUNKED, *pieces, *LATER)
        assert one.failure() == "not a stream"
        assert text.split()[0].decode() in one.said


@pytest.mark.parametrize("between", [b": ping\n\n", b"id: 7\n\n", b"retry: 5\n\n", b"event: ping\n\n", b"\n\n"])
def test_a_comment_and_the_other_fields_of_an_event_harm_nothing(between: bytes) -> None:
    assert read(CHUNKED, event(GOOD[0]), chunk(between), *LATER).failure() is None


def test_a_chunk_like_those_before_is_held_to_its_own_size() -> None:
    """The quick way past full parsing looks at sizes too, also at those it has seen."""
    one = event(json.dumps(delta(content="x"), separators=(",", ":")).encode())
    size, _, rest = one.partition(b"\r\n")
    shouted = size.upper().zfill(4) + b"\r\n" + rest
    last = [event(delta("stop", content="y")), event(usage(8)), event(b"[DONE]"), END]
    assert read(OPEN, *[one] * 3, *[shouted] * 3, one, *last).failure() is None
    for number in (b"+" + size, b"0x" + size, b" " + size, b"%x" % (int(size, 16) - 1)):
        assert read(OPEN, *[one] * 3, number + b"\r\n" + rest, *last).failure() == "not HTTP", number
