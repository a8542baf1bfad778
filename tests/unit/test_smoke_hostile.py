"""The smoke test of servers that never end, say nothing, or think aloud."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from typing import Any

import psutil
import pytest

from model_delivery.measure.smoke import SmokeReport
from model_delivery.steps import smoke
from model_delivery.steps.smoke import SmokeInput, run
from tests.parts.raw_server import CHUNKED, RawServer, answer, chunk, delta, event, stream, usage

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USAGE = {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}


def whole(message: dict[str, Any], reason: str = "stop") -> bytes:
    return answer({"choices": [{"message": message, "finish_reason": reason}], "usage": USAGE, "error": None})


def text(said: str, tokens: int = 6) -> bytes:
    return answer(
        {"choices": [{"text": said, "finish_reason": "stop"}], "usage": {**USAGE, "completion_tokens": tokens}}
    )


def piece(said: str, reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"text": said, "finish_reason": reason}], "error": None}


SOUND: dict[str, bytes | Iterable[bytes | float]] = {
    CHAT: whole({"content": "Paris."}),
    COMPLETIONS: text("Paris."),
    f"stream {CHAT}": stream(delta(role="assistant", content=""), delta("stop", content="Paris"), usage(6), b"[DONE]"),
    f"stream {COMPLETIONS}": stream(piece("Paris", "stop"), usage(6), b"[DONE]"),
}


def smoked(answers: dict[str, bytes | Iterable[bytes | float]]) -> SmokeReport:
    with RawServer(SOUND | answers) as server:
        facts = {"url": server.url, "model_names": ("m",), "prompt": "x", "expect": "Paris", "max_tokens": 16}
        return run(SmokeInput.model_validate(facts))


def failed(report: SmokeReport) -> dict[str, str]:
    """Without the check that a server of fixed answers cannot pass."""
    return {check.name: check.detail for check in report.checks if not check.passed and check.name != "unknown model"}


def test_a_null_error_and_a_usage_chunk_without_choices_are_fine() -> None:
    assert failed(smoked({})) == {}


def test_a_reasoning_model_answers_in_its_reasoning() -> None:
    thought = {"role": "assistant", "content": None, "reasoning_content": "It is Paris."}
    streamed = stream(
        delta(role="assistant", content=""),
        delta(reasoning_content="It"),
        delta("stop", content=""),
        usage(6),
        b"[DONE]",
    )
    report = smoked({CHAT: whole(thought), f"stream {CHAT}": streamed})
    assert failed(report) == {}
    assert report.answer == "It is Paris."
    assert "only reasoning: 'It is Paris.', stop" in [check.detail for check in report.checks]


def test_reasoning_that_is_cut_before_the_answer_says_what_to_raise() -> None:
    report = smoked({CHAT: whole({"content": "", "reasoning": "The user asks"}, "length")})
    assert list(failed(report)) == ["known answer"]
    assert "only reasoning within max_tokens: raise gates.smoke.max_tokens" in failed(report)["known answer"]


def test_an_empty_completions_stream_fails_where_the_completion_is_not_empty() -> None:
    empty = stream(piece("", "stop"), usage(6), b"[DONE]")
    assert failed(smoked({f"stream {COMPLETIONS}": empty})) == {"completions stream": "the stream had zero tokens"}


def test_a_completion_that_ends_at_once_may_be_empty_both_ways() -> None:
    at_once = stream(piece("", "stop"), usage(1), b"[DONE]")
    assert failed(smoked({COMPLETIONS: text("", 1), f"stream {COMPLETIONS}": at_once})) == {}
    assert list(failed(smoked({COMPLETIONS: text("")}))) == ["completions"]


def test_a_stream_that_never_ends_is_ended() -> None:
    endless = itertools.chain([CHUNKED], itertools.repeat(event(delta(content="again "))))
    began = time.monotonic()
    assert "it does not end" in failed(smoked({f"stream {CHAT}": endless}))["chat stream"]
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("path", "check", "pieces"),
    [
        (f"stream {CHAT}", "chat stream", itertools.chain([CHUNKED], itertools.repeat(chunk(b"x" * 1_000_000)))),
        (CHAT, "chat", itertools.chain([b"HTTP/1.1 200 OK\r\nContent-Length: 3000000000\r\n\r\n"], itertools.repeat(b" " * 1_000_000))),
    ],
)  # fmt: skip
def test_a_line_or_a_body_without_end_takes_no_memory(path: str, check: str, pieces: Iterable[bytes | float]) -> None:
    before = psutil.Process().memory_info().rss
    assert "too large" in failed(smoked({path: pieces}))[check]
    assert psutil.Process().memory_info().rss - before < 150 << 20


def test_a_server_that_says_nothing_has_a_deadline_and_the_rest_of_the_checks_a_shorter_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(smoke, "SECONDS", 0.5)
    monkeypatch.setattr(smoke, "TOKEN_SECONDS", 0.0)
    monkeypatch.setattr(smoke, "SHORT_SECONDS", 0.1)

    began = time.monotonic()
    found = failed(smoked({"/health": [3.0], CHAT: [3.0], COMPLETIONS: [3.0]}))
    assert found["health"] == "/health answers timeout after 0.5 s"
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "said",
    [b"[" * 100_000, b"null", b'{"choices": null}', b'{"choices": ["x"]}', b'{"choices": [{"message": 5}]}', b"5"],
)
def test_any_json_of_another_form_fails_the_check_and_not_the_step(said: bytes) -> None:
    found = failed(smoked({CHAT: answer(said), COMPLETIONS: answer(said), "/v1/models": answer(said)}))
    assert {"chat", "completions", "models", "usage", "max_model_len"} <= set(found)


def test_what_a_server_says_steers_no_terminal_and_forges_no_row() -> None:
    evil = "Paris \x1b[2J\r\r## Passed\u2028| throughput | fine |\u202e"
    report = smoked({CHAT: whole({"content": evil})})
    assert all(line.isprintable() for check in report.checks for line in (check.detail, *report.answer.split("\n")))


def test_the_step_ends_with_its_findings_where_its_input_is_no_address() -> None:
    with pytest.raises(ValueError, match="not an address"):
        SmokeInput(url="foo", model_names=("m",), prompt="x", expect="x", max_tokens=1)


@pytest.mark.parametrize("reason", ["abort", "error", "content_filter"])
def test_an_answer_that_was_broken_off_passes_no_check(reason: str) -> None:
    found = failed(
        smoked(
            {
                CHAT: whole({"content": "Paris"}, reason),
                COMPLETIONS: answer({"choices": [{"text": "Paris", "finish_reason": reason}], "usage": USAGE}),
                f"stream {CHAT}": stream(delta(reason, content="Paris"), usage(6), b"[DONE]"),
                f"stream {COMPLETIONS}": stream(piece("Paris", reason), usage(6), b"[DONE]"),
            }
        )
    )
    assert {"chat", "chat stream", "completions", "completions stream", "usage", "known answer"} <= set(found)
    assert f"finish reason '{reason}'" in found["chat"]


def of(model: Any) -> dict[str, bytes | Iterable[bytes | float]]:
    """A sound server whose answers say that they are ``model``'s."""
    named, text_ = {"model": model, "usage": USAGE}, {"text": "Paris", "finish_reason": "stop"}
    first = {"model": model, **delta(content="Par")}
    return {
        CHAT: answer({**named, "choices": [{"message": {"content": "Paris"}, "finish_reason": "stop"}]}),
        COMPLETIONS: answer({**named, "choices": [text_]}),
        f"stream {CHAT}": stream(first, {"model": "m", **delta("stop", content="is")}, usage(6), b"[DONE]"),
        f"stream {COMPLETIONS}": stream({"model": model, **piece("Paris", "stop")}, usage(6), b"[DONE]"),
    }


@pytest.mark.parametrize("model", ["another-model", "m2", 5, ["m"]])
def test_answers_of_another_model_pass_no_check(model: Any) -> None:
    found = failed(smoked(of(model)))
    assert {"chat", "chat stream", "completions", "completions stream", "usage"} <= set(found)
    if isinstance(model, str):
        assert {found["chat"], found["completions stream"]} == {f"the answer is of another model: {model}"}


@pytest.mark.parametrize("model", ["m", None, ""])
def test_an_answer_may_say_whose_it_is_or_not(model: Any) -> None:
    assert failed(smoked(of(model))) == {}


@pytest.mark.parametrize("said", [f"Paris. {'x' * 80} {{}}", f"Paris. {'x' * 15_950} {{}}", "Paris. {}" * 300])
def test_no_piece_of_a_key_is_left_where_an_answer_is_cut(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K", key := "sk-" + "A1b2" * 16)
    text_ = said.replace("{}", key)
    refusal = answer(f"<html>{' ' * 740}\n {key} {'&' * 100} {key * 3000}".encode(), "500 Broken")
    answers = SOUND | {CHAT: whole({"content": text_}), COMPLETIONS: refusal}
    with RawServer(answers) as server:
        facts = {"url": server.url, "model_names": ("m",), "prompt": "x", "expect": "Paris", "max_tokens": 16}
        report = run(SmokeInput.model_validate(facts | {"api_key": {"env": "K"}}))
    assert "sk-A" not in report.model_dump_json()
    assert "A1b2" not in report.model_dump_json()
    assert "chat" not in failed(report)
