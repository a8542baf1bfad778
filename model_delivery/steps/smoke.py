"""The smoke test as a step: does it answer, streamed and not, as the model that was
meant?
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx

from model_delivery.base import Part, Progress, SecretRef, bearer, report
from model_delivery.measure.smoke import Check, SmokeReport
from model_delivery.steps import Step

TIMEOUT = httpx.Timeout(120, connect=10)
OK = 200


class SmokeInput(Part):
    """``url`` is the base address, without /v1.

    ``max_model_len`` None: whatever the server says is reported.
    """

    url: str
    api_key: SecretRef | None = None
    model_names: tuple[str, ...]
    prompt: str
    expect: str
    max_tokens: int
    max_model_len: int | None = None


class Wrong(Exception):
    """A check's reason to fail."""


@dataclass
class _Smoke:
    given: SmokeInput
    client: httpx.Client
    answer: str = ""

    def checks(self) -> Iterator[tuple[str, Callable[[], str]]]:
        first, *_ = names = self.given.model_names
        yield "health", self.health
        yield "models", self.models
        for name in names:
            suffix = "" if name == first else f" ({name})"
            yield f"chat{suffix}", partial(self.chat, name)
            yield f"chat stream{suffix}", partial(self.stream, "chat/completions", name)
            yield f"completions{suffix}", partial(self.completions, name)
            yield f"completions stream{suffix}", partial(self.stream, "completions", name)
        yield "usage", partial(self.usage, first)
        yield "known answer", self.known_answer
        yield "max_model_len", partial(self.max_model_len, first)
        yield "unknown model", self.unknown_model

    def ask(self, path: str, name: str, **more: Any) -> dict[str, Any]:
        """A request's arguments."""
        prompt = self.given.prompt
        asked = {"messages": [{"role": "user", "content": prompt}]} if path.startswith("chat") else {"prompt": prompt}
        body = {"model": name, "max_tokens": self.given.max_tokens, "temperature": 0, **asked, **more}
        return {"method": "POST", "url": f"/v1/{path}", "json": body}

    def post(self, path: str, name: str) -> dict[str, Any]:
        return dict(checked(self.client.request(**self.ask(path, name))).json())

    def health(self) -> str:
        status = self.client.get("/health").status_code
        if status != OK:
            raise Wrong(f"/health answers {status}")
        return "/health answers 200"

    def listed(self) -> dict[str, Any]:
        models = checked(self.client.get("/v1/models"), "/v1/models answers ").json()["data"]
        return {model["id"]: model for model in models}

    def models(self) -> str:
        served = self.listed()
        missing = [name for name in self.given.model_names if name not in served]
        if missing:
            raise Wrong(f"{', '.join(missing)} not served; served: {', '.join(served)}")
        return ", ".join(served)

    def chat(self, name: str) -> str:
        answer = self.post("chat/completions", name)
        choice = answer["choices"][0]
        text, reason = str(choice["message"]["content"] or "").strip(), choice["finish_reason"]
        if not text or not reason:
            raise Wrong(f"text {text!r}, finish reason {reason!r}")
        counted(answer)
        self.answer = text
        return f"{text[:120]!r}, {reason}"

    def completions(self, name: str) -> str:
        answer = self.post("completions", name)
        reason = answer["choices"][0]["finish_reason"]
        if not reason:
            raise Wrong("no finish reason")
        return f"{counted(answer)} tokens, {reason}"

    def stream(self, path: str, name: str) -> str:
        """[DONE] proves nothing: it also ends a stream that failed. A finish reason, a
        usage chunk and no error do.

        A chat must have text; a completion of a question may rightly end at once.
        """
        pieces, reason, usage, done = 0, None, None, False
        asked = self.ask(path, name, stream=True, stream_options={"include_usage": True})
        with self.client.stream(**asked) as answer:
            if answer.status_code != OK:
                answer.read()
            lines = (line.removeprefix("data:").strip() for line in checked(answer).iter_lines() if line[:5] == "data:")
            for text in lines:
                if done := done or text == "[DONE]":
                    continue
                event = json.loads(text)
                if "error" in event:
                    raise Wrong(f"an error in the stream: {str(event['error'])[:200]}")
                usage = event.get("usage") or usage
                for choice in event["choices"]:
                    pieces += bool(choice.get("text") or choice.get("delta", {}).get("content"))
                    reason = choice.get("finish_reason") or reason
        enough = pieces or not path.startswith("chat")
        parts = {"text": enough, "finish reason": reason, "usage": usage, "[DONE]": done}
        if missing := [part for part, there in parts.items() if not there]:
            raise Wrong(f"the stream had no {' and no '.join(missing)}")
        return f"{pieces} pieces, {reason}, {counted({'usage': usage})} tokens"

    def usage(self, name: str) -> str:
        usage = self.post("chat/completions", name)["usage"]
        prompt, completion = usage["prompt_tokens"], usage["completion_tokens"]
        if min(prompt, completion) < 1 or usage["total_tokens"] != prompt + completion:
            raise Wrong(f"usage is {usage}")
        return f"{prompt} + {completion} = {prompt + completion}"

    def known_answer(self) -> str:
        expected = self.given.expect
        if expected.casefold() not in self.answer.casefold():
            raise Wrong(f"{expected!r} is not in {self.answer[:200]!r}")
        return f"{expected!r} is in {self.answer[:120]!r}"

    def max_model_len(self, name: str) -> str:
        asked, length = self.given.max_model_len, self.listed().get(name, {}).get("max_model_len")
        if asked is not None and length != asked:
            raise Wrong(f"the server says {length}, asked was {asked}")
        return str(length)

    def unknown_model(self) -> str:
        status = self.client.request(**self.ask("chat/completions", "model-delivery-unknown")).status_code
        if status != httpx.codes.NOT_FOUND:
            raise Wrong(f"a model that is not served gets status {status}, not 404")
        return "404"


def checked(answer: httpx.Response, what: str = "status ") -> httpx.Response:
    if answer.status_code != OK:
        raise Wrong(f"{what}{answer.status_code}: {answer.text[:200]}")
    return answer


def counted(answer: dict[str, Any]) -> int:
    tokens = (answer.get("usage") or {}).get("completion_tokens")
    if not tokens:
        raise Wrong("no usage counts")
    return int(tokens)


def run(given: SmokeInput) -> SmokeReport:
    """Every check runs; a failed one is in the report, never an exception."""
    checks, headers = [], bearer(given.api_key)
    with httpx.Client(base_url=given.url, headers=headers, timeout=TIMEOUT, trust_env=False) as client:
        smoke = _Smoke(given, client)
        for name, check in smoke.checks():
            start = time.monotonic()
            try:
                passed, detail = True, check()
            except Wrong as wrong:
                passed, detail = False, str(wrong)
            except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
                passed, detail = False, f"{type(error).__name__}: {error}"[:300]
            report(Progress("smoke", f"{name}: {'ok' if passed else 'FAILED'}: {detail}"))
            checks.append(Check(name=name, passed=passed, detail=detail, seconds=round(time.monotonic() - start, 3)))
    return SmokeReport(checks=tuple(checks), answer=smoke.answer)


STEP = Step("smoke", SmokeInput, SmokeReport, run)
