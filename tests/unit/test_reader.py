"""The reader sees the same stream however it is cut into pieces."""

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from model_delivery.measure.reader import Parser, Stream

TEXTS = ["The", " capital", "", " is", ' "quoted"', " é", "\n\n", "data: x", " end"]


def chunk(event: str) -> bytes:
    payload = f"data: {event}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(payload), payload)


def event(delta: dict[str, object], reason: str | None = None) -> str:
    return json.dumps(
        {"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]},
        separators=(",", ":"),
        ensure_ascii=False,
    )


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
USAGE = json.dumps({"choices": [], "usage": {"completion_tokens": len(TEXTS), "prompt_tokens": 3}})
EVENTS = [
    event({"role": "assistant", "content": ""}),
    *(event({"content": text}) for text in TEXTS[:-1]),
    event({"content": TEXTS[-1]}, "stop"),
    USAGE,
    "[DONE]",
]
WHOLE = HEAD + b"".join(map(chunk, EVENTS)) + b"0\r\n\r\n"


def read(pieces: list[bytes]) -> tuple[Stream, list[bool]]:
    stream = Stream(0)
    parser = Parser(stream)
    over = [parser.feed(piece, at) for at, piece in enumerate(pieces, 1)]
    return stream, over


@settings(max_examples=3000, deadline=None)
@given(st.lists(st.integers(1, len(WHOLE) - 1), max_size=40, unique=True))
def test_any_fragmentation_gives_the_same_stream(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(WHOLE)]
    stream, over = read([WHOLE[a:b] for a, b in pairwise(edges)])
    assert over == [False] * (len(over) - 1) + [True]
    assert len(stream.times) == len(TEXTS)
    assert stream.times == sorted(stream.times)
    assert stream.failure() is None
    assert stream.usage == {"completion_tokens": len(TEXTS), "prompt_tokens": 3}


def test_an_event_a_read_is_timed_by_its_own_arrival() -> None:
    stream, _ = read([HEAD, *map(chunk, EVENTS), b"0\r\n\r\n"])
    assert stream.times == list(range(3, 3 + len(TEXTS)))
    assert stream.first_text == 3
    assert stream.coalesced == 0


def test_events_that_come_together_are_counted_as_coalesced() -> None:
    stream, _ = read([WHOLE])
    assert stream.coalesced == len(TEXTS) - 1


def test_done_alone_proves_nothing() -> None:
    error = json.dumps({"error": {"message": "EngineCore encountered an issue.", "code": 500}})
    stream, over = read([HEAD + chunk(EVENTS[1]) + chunk(error) + chunk("[DONE]") + b"0\r\n\r\n"])
    assert over == [True]
    assert stream.done
    assert stream.failure() == "error in the stream"


def test_kinds_of_errors() -> None:
    def kind(*events: str) -> str | None:
        return read([HEAD + b"".join(map(chunk, events)) + b"0\r\n\r\n"])[0].failure()

    assert kind(EVENTS[1], USAGE, "[DONE]") == "no finish reason"
    assert kind(EVENTS[1], EVENTS[-3], "[DONE]") == "no usage"
    assert kind(EVENTS[1], EVENTS[-3], USAGE) == "no [DONE]"
    assert kind(event({}, "stop"), USAGE, "[DONE]") == "zero tokens"
    refused = read([b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\n{}"])[0]
    assert refused.failure() == "status 401"


def test_reasoning_deltas_are_tokens() -> None:
    stream, _ = read(
        [
            HEAD
            + chunk(event({"reasoning_content": "hm"}))
            + chunk(event({"content": "yes"}, "stop"))
            + chunk(USAGE)
            + chunk("[DONE]")
            + b"0\r\n\r\n"
        ]
    )
    assert len(stream.times) == 2
    assert stream.failure() is None
