"""The smoke test as a step: does it answer, streamed and not, as the model that was
meant?
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import Field

from model_delivery.base import Part, Progress, SecretRef, bearer, report, short
from model_delivery.measure.asking import BaseAddress, ask
from model_delivery.measure.reader import Stream
from model_delivery.measure.smoke import Check, SmokeReport
from model_delivery.measure.words import fault, message, printable, spoken
from model_delivery.steps import Step

AT_ONCE = 16  # replicas that are asked at the same time
SECONDS, TOKEN_SECONDS, SHORT_SECONDS, LED_SECONDS = 120.0, 0.5, 10.0, 20.0
BYTES, TOKEN_BYTES = 4 << 20, 4096
NOT_FOUND, LINE = 404, 4000
BARRED = (401, 403)
MARKS, NO_CHARACTER = "Ġ▁", "\ufffd"  # for a space in the two common kinds of tokenizer
RAISE = "raise gates.smoke.max_tokens"


class SmokeInput(Part):
    """``url`` is the base address, without /v1.

    ``max_model_len`` None: whatever the server says is reported. ``replicas``: the base
    address of each engine behind ``url``, by its pod's name (none: it is one engine).
    """

    url: BaseAddress
    api_key: SecretRef | None = None
    model_names: tuple[str, ...]
    prompt: str
    expect: str
    max_tokens: int
    max_model_len: int | None = None
    replicas: dict[str, BaseAddress] = Field({}, exclude_if=lambda replicas: not replicas)


class Wrong(Exception):
    """A check's reason to fail."""


@dataclass
class _Smoke:
    given: SmokeInput
    headers: dict[str, str]
    answer: str = ""
    cut: bool = False
    ended_at_once: bool = False
    late: bool = False

    def checks(self) -> Iterator[tuple[str, Callable[[], str]]]:
        first, *_ = names = self.given.model_names
        yield "health", self.health
        yield "models", self.models
        for name in names:
            suffix = "" if name == first else f" ({name})"
            yield f"chat{suffix}", partial(self.chat, name)
            yield f"chat stream{suffix}", partial(self.stream, "/v1/chat/completions", name)
            yield f"completions{suffix}", partial(self.completions, name)
            yield f"completions stream{suffix}", partial(self.stream, "/v1/completions", name)
        yield "usage", partial(self.usage, first)
        yield "known answer", self.known_answer
        yield "max_model_len", partial(self.max_model_len, first)
        yield "unknown model", self.unknown_model
        if self.given.api_key is not None:
            yield "no key", partial(self.no_key, first)

    def ask(self, path: str, name: str = "", *, streamed: bool = False) -> Stream:
        """One request; once one came late, the others get little time."""
        prompt, most = self.given.prompt, self.given.max_tokens
        asked = {"messages": [{"role": "user", "content": prompt}]} if "chat" in path else {"prompt": prompt}
        body: dict[str, Any] = {"model": name, "max_tokens": most, "temperature": 0, **asked}
        if streamed:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        answer = ask(
            self.given.url,
            path,
            body if name else None,
            headers=self.headers,
            seconds=SHORT_SECONDS if self.late else SECONDS + TOKEN_SECONDS * most,
            limit=BYTES + TOKEN_BYTES * most,
            tokens=2 * most + 16 if streamed else None,
        )
        self.late |= "timeout" in (answer.error or "")
        return answer

    def read(self, path: str, name: str = "") -> dict[str, Any]:
        """An answer that must be JSON."""
        answer = self.ask(path, name)
        if why := answer.why():
            raise Wrong(f"{path} answers {why.removeprefix('status ')}")
        said = json.loads(answer.body)
        if error := fault(said) if name else said.get("error"):
            raise Wrong(f"{path} answers 200 with an error: {message(error)}")
        self.must_be_ours({said["model"]} if said.get("model") else set())
        return dict(said)

    def must_be_ours(self, models: set[str]) -> None:
        """Old engines answer by their first name to any of theirs."""
        if others := models.difference(self.given.model_names):
            raise Wrong(f"the answer is of another model: {', '.join(map(str, others))}")

    def health(self) -> str:
        """The first to ask: an address may be led to a pod a moment after that is
        ready.
        """
        until = time.monotonic() + LED_SECONDS
        while ((answer := self.ask("/health")).error or "").startswith("connection: ") and time.monotonic() < until:
            time.sleep(0.2)
        if why := answer.why():
            raise Wrong(f"/health answers {why.removeprefix('status ')}")
        return "/health answers 200"

    def listed(self) -> dict[str, Any]:
        return {str(model["id"]): model for model in self.read("/v1/models")["data"]}

    def models(self) -> str:
        served = self.listed()
        missing = [name for name in self.given.model_names if name not in served]
        if missing:
            raise Wrong(f"{', '.join(missing)} not served; served: {', '.join(served)}")
        return ", ".join(served)

    def chat(self, name: str) -> str:
        """Reasoning is an answer too, also where nothing came after it."""
        answer = self.read("/v1/chat/completions", name)
        choice = answer["choices"][0]
        said, reason = choice["message"], choice["finish_reason"]
        content = said.get("content")
        text = (content if isinstance(content, str) else json.dumps(content) if content else "").strip()
        self.cut = not text and reason == "length"
        self.answer = text or "\n".join(spoken(said)).strip()
        if not self.answer or not reason:
            why = f"; nothing within max_tokens: {RAISE}" if self.cut else ""
            raise Wrong(f"text {self.answer!r}, finish reason {reason!r}{why}")
        counted(answer)
        only = f"only reasoning within max_tokens ({RAISE}): " if self.cut else "" if text else "only reasoning: "
        return f"{only}{short(self.answer, 120)!r}, {reason}"

    def completions(self, name: str) -> str:
        answer = self.read("/v1/completions", name)
        choice = answer["choices"][0]
        text, reason, tokens = choice["text"], choice["finish_reason"], counted(answer)
        if not reason:
            raise Wrong("no finish reason")
        self.ended_at_once = not text and reason == "stop" and tokens == 1
        if not (text or self.ended_at_once):
            raise Wrong(f"no text in {tokens} tokens")
        return f"{tokens} tokens, {reason}"

    def stream(self, path: str, name: str) -> str:
        """A chat must have text; a completion of a question may rightly end at once,
        where it also does when it is not streamed.
        """
        answer = self.ask(path, name, streamed=True)
        failure = answer.failure()
        if failure == "zero tokens" and "chat" not in path and self.ended_at_once and answer.tokens == 1:
            failure = None
        if failure:
            raise Wrong(answer.why() or f"the stream had {failure}")
        self.must_be_ours(answer.models)
        return f"{len(answer.times)} pieces, {answer.reason}, {answer.tokens} tokens"

    def usage(self, name: str) -> str:
        usage = self.read("/v1/chat/completions", name)["usage"]
        prompt, completion = usage["prompt_tokens"], usage["completion_tokens"]
        if min(prompt, completion) < 1 or usage["total_tokens"] != prompt + completion:
            raise Wrong(f"usage is {usage}")
        return f"{prompt} + {completion} = {prompt + completion}"

    def known_answer(self) -> str:
        """What a tokenizer makes of it that is not the model's is no answer."""
        expected = self.given.expect
        if " " not in self.answer and any(mark in self.answer for mark in MARKS):
            raise Wrong(f"the answer is in the tokenizer's own marks, not in text: {short(self.answer, 200)!r}")
        if NO_CHARACTER in self.answer.rstrip(NO_CHARACTER):  # at its end, max_tokens may have cut one
            raise Wrong(f"the answer has characters that are none (U+FFFD): {short(self.answer, 200)!r}")
        if expected.casefold() not in self.answer.casefold():
            why = f"; only reasoning within max_tokens: {RAISE}" if self.cut else ""
            raise Wrong(f"{expected!r} is not in {short(self.answer, 200)!r}{why}")
        return f"{expected!r} is in {short(self.answer, 120)!r}"

    def max_model_len(self, name: str) -> str:
        asked, length = self.given.max_model_len, self.listed().get(name, {}).get("max_model_len")
        if asked is not None and length != asked:
            raise Wrong(f"the server says {length}, asked was {asked}")
        return str(length)

    def unknown_model(self) -> str:
        answer = self.ask("/v1/chat/completions", "model-delivery-unknown")
        if answer.status != NOT_FOUND:
            raise Wrong(f"a model that is not served gets {answer.why() or 'an answer'}, not status 404")
        return "404"

    def by_itself(self, url: str) -> str:
        """A short proof of one replica, past any balancer. One that says nothing at all
        may be out of reach from here, and is not judged: the address has its own checks.
        """
        well = ask(url, "/health", headers=self.headers, seconds=SHORT_SECONDS, limit=BYTES)
        if not well.status:
            return f"not judged: it is not reached from here ({well.why()})"
        seen = [check() for check in (self.health, self.models, partial(self.chat, self.given.model_names[0]))]
        return f"{seen[0]}; {self.known_answer()}"

    def no_key(self, name: str) -> str:
        """A key that is set must be asked for."""
        self.headers = {}
        answer = self.ask("/v1/chat/completions", name)
        if answer.status not in BARRED:
            raise Wrong(f"without the key it gives {answer.why() or 'an answer'}, not status 401")
        return str(answer.status)


def counted(answer: dict[str, Any]) -> int:
    tokens = (answer.get("usage") or {}).get("completion_tokens")
    if not tokens:
        raise Wrong("no usage counts")
    return int(tokens)


def run(given: SmokeInput) -> SmokeReport:
    """Every check runs; a failed one is in the report, never an exception."""
    smoke = _Smoke(given, bearer(given.api_key))
    checks = [_told(_checked(name, check)) for name, check in smoke.checks()]
    if len(given.replicas) > 1:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            checks += map(_told, pool.map(partial(_replica, given), *zip(*given.replicas.items(), strict=True)))
    return SmokeReport(
        checks=tuple(checks),
        answer="\n".join(printable(line, 4000) for line in short(smoke.answer, 16000).splitlines()),
    )


def _replica(given: SmokeInput, name: str, url: str) -> Check:
    smoke = _Smoke(given.model_copy(update={"url": url}), bearer(given.api_key))
    return _checked(f"replica {name}", partial(smoke.by_itself, url), name)


def _checked(name: str, check: Callable[[], str], replica: str = "") -> Check:
    start = time.monotonic()
    try:
        passed, detail = True, check()
    except Wrong as wrong:
        passed, detail = False, str(wrong)
    except Exception as error:
        passed, detail = False, f"the answer is not as OpenAI's: {type(error).__name__}: {error}"
    seconds = round(time.monotonic() - start, 3)
    return Check(name=name, passed=passed, detail=printable(detail, 600), seconds=seconds, replica=replica)


def _told(check: Check) -> Check:
    report(Progress("smoke", f"{check.name}: {'ok' if check.passed else 'FAILED'}: {check.detail}"))
    return check


STEP = Step("smoke", SmokeInput, SmokeReport, run)
