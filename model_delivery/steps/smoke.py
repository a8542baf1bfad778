"""The smoke test as a step: does it answer, streamed and not, as the model that was meant? Health only says that a process lives."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
from pydantic import BaseModel, ConfigDict

from model_delivery.base.progress import Progress, report
from model_delivery.base.secrets import SecretRef, read_secret
from model_delivery.measure.smoke import Check, SmokeReport
from model_delivery.steps import Step

TIMEOUT = httpx.Timeout(120, connect=10)
OK = 200


class SmokeInput(BaseModel):
    """``url`` is the base address, without /v1. ``max_model_len`` None: whatever the server says is reported."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    tokens: int = 0

    def checks(self) -> Iterator[tuple[str, Callable[[], str]]]:
        yield "health", self.health
        yield "models", self.models
        for name in self.given.model_names:
            suffix = "" if name == self.given.model_names[0] else f" ({name})"
            yield f"chat{suffix}", lambda name=name: self.chat(name)  # type: ignore[misc]
            yield f"chat stream{suffix}", lambda name=name: self.stream("chat/completions", name)  # type: ignore[misc]
            yield f"completions{suffix}", lambda name=name: self.completions(name)  # type: ignore[misc]
            yield f"completions stream{suffix}", lambda name=name: self.stream("completions", name)  # type: ignore[misc]
        yield "usage", self.usage
        yield "known answer", self.known_answer
        yield "max_model_len", self.max_model_len
        yield "unknown model", self.unknown_model

    def body(self, path: str, name: str, **more: Any) -> dict[str, Any]:
        asked = (
            {"messages": [{"role": "user", "content": self.given.prompt}]}
            if path.startswith("chat")
            else {"prompt": self.given.prompt}
        )
        return {"model": name, "max_tokens": self.given.max_tokens, "temperature": 0, **asked, **more}

    def post(self, path: str, name: str) -> dict[str, Any]:
        answer = self.client.post(f"/v1/{path}", json=self.body(path, name))
        if answer.status_code != OK:
            raise Wrong(f"status {answer.status_code}: {answer.text[:200]}")
        said: dict[str, Any] = answer.json()
        return said

    def health(self) -> str:
        status = self.client.get("/health").status_code
        if status != OK:
            raise Wrong(f"/health answers {status}")
        return "/health answers 200"

    def listed(self) -> dict[str, Any]:
        answer = self.client.get("/v1/models")
        if answer.status_code != OK:
            raise Wrong(f"/v1/models answers {answer.status_code}: {answer.text[:200]}")
        return {model["id"]: model for model in answer.json()["data"]}

    def models(self) -> str:
        listed = self.listed()
        missing = [name for name in self.given.model_names if name not in listed]
        if missing:
            raise Wrong(f"{', '.join(missing)} not served; served: {', '.join(listed)}")
        return ", ".join(listed)

    def chat(self, name: str) -> str:
        said = self.post("chat/completions", name)
        choice = said["choices"][0]
        text = str(choice["message"]["content"] or "")
        if not text.strip() or not choice["finish_reason"]:
            raise Wrong(f"text {text!r}, finish reason {choice['finish_reason']!r}")
        self.answer, self.tokens = text.strip(), counted(said)
        return f"{text.strip()[:120]!r}, {choice['finish_reason']}"

    def completions(self, name: str) -> str:
        said = self.post("completions", name)
        choice = said["choices"][0]
        if not choice["finish_reason"]:
            raise Wrong("no finish reason")
        return f"{counted(said)} tokens, {choice['finish_reason']}"

    def stream(self, path: str, name: str) -> str:
        """[DONE] proves nothing: it also ends a stream that failed. A finish reason, a usage chunk and no error do.

        A chat must have text; a completion of a question may rightly end at once.
        """
        pieces, reason, usage, done = 0, None, None, False
        body = self.body(path, name, stream=True, stream_options={"include_usage": True})
        with self.client.stream("POST", f"/v1/{path}", json=body) as answer:
            if answer.status_code != OK:
                raise Wrong(f"status {answer.status_code}: {answer.read().decode()[:200]}")
            for line in answer.iter_lines():
                event = line.removeprefix("data:").strip()
                if not line.startswith("data:") or done:
                    continue
                if event == "[DONE]":
                    done = True
                    continue
                said = json.loads(event)
                if "error" in said:
                    raise Wrong(f"an error in the stream: {str(said['error'])[:200]}")
                usage = said.get("usage") or usage
                for choice in said["choices"]:
                    pieces += bool(choice.get("text") or choice.get("delta", {}).get("content"))
                    reason = choice.get("finish_reason") or reason
        text = pieces or not path.startswith("chat")
        wrong = [
            what
            for what, there in (("text", text), ("finish reason", reason), ("usage", usage), ("[DONE]", done))
            if not there
        ]
        if wrong:
            raise Wrong(f"the stream had no {' and no '.join(wrong)}")
        return f"{pieces} pieces, {reason}, {counted({'usage': usage})} tokens"

    def usage(self) -> str:
        said = self.post("chat/completions", self.given.model_names[0])["usage"]
        total = said["prompt_tokens"] + said["completion_tokens"]
        if min(said["prompt_tokens"], said["completion_tokens"]) < 1 or said["total_tokens"] != total:
            raise Wrong(f"usage is {said}")
        return f"{said['prompt_tokens']} + {said['completion_tokens']} = {total}"

    def known_answer(self) -> str:
        if self.given.expect.casefold() not in self.answer.casefold():
            raise Wrong(f"{self.given.expect!r} is not in {self.answer[:200]!r}")
        return f"{self.given.expect!r} is in {self.answer[:120]!r}"

    def max_model_len(self) -> str:
        said = self.listed().get(self.given.model_names[0], {}).get("max_model_len")
        if self.given.max_model_len is not None and said != self.given.max_model_len:
            raise Wrong(f"the server says {said}, asked was {self.given.max_model_len}")
        return str(said)

    def unknown_model(self) -> str:
        name = "model-delivery-unknown"
        status = self.client.post("/v1/chat/completions", json=self.body("chat/completions", name)).status_code
        if status != httpx.codes.NOT_FOUND:
            raise Wrong(f"a model that is not served gets status {status}, not 404")
        return "404"


def counted(said: dict[str, Any]) -> int:
    tokens = (said.get("usage") or {}).get("completion_tokens")
    if not tokens:
        raise Wrong("no usage counts")
    return int(tokens)


def run(given: SmokeInput) -> SmokeReport:
    """Every check runs; a failed one is in the report, never an exception."""
    headers = {"Authorization": f"Bearer {read_secret(given.api_key).reveal()}"} if given.api_key else {}
    done = []
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
            done.append(Check(name=name, passed=passed, detail=detail, seconds=round(time.monotonic() - start, 3)))
    return SmokeReport(checks=tuple(done), answer=smoke.answer)


STEP = Step("smoke", SmokeInput, SmokeReport, run)
