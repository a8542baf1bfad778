"""What a load test asks: profiles are small YAML files, bounded in time and in
requests.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError, model_validator

from model_delivery.base import Part, problems

SLICES = 120
KEYS = ('"prompt"', '"messages"')


class Prompt(Part):
    """A line of a user's own: a text, or its messages; ``output_tokens`` where it is not
    the profile's.
    """

    prompt: str = Field("", strict=True)
    messages: tuple[dict[str, Any], ...] = ()
    output_tokens: int | None = Field(None, ge=1, le=1_000_000)

    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="after")
    def _one(self) -> Prompt:
        if bool(self.prompt) == bool(self.messages):
            raise ValueError("it needs a prompt or messages, and not both")
        return self


class Profile(Part):
    """Lengths in tokens, times in s.

    ``shared_prefix`` of the ``prompt_tokens`` are the same in all prompts, the rest never
    is: so a prefix cache cannot flatter. ``prompts``: a user's own, one a line.
    ``ignore_eos``: every answer is as long as asked, and one that is shorter is an error.
    """

    endpoint: Literal["chat", "completions"] = "chat"
    prompt_tokens: int = Field(64, ge=1, le=1_000_000)
    output_tokens: int = Field(64, ge=1, le=1_000_000)
    shared_prefix: int = Field(0, ge=0)
    prompts: tuple[str, ...] = ()
    ignore_eos: bool = False
    temperature: float = Field(0, ge=0)
    arrivals: Literal["poisson", "constant"] = "poisson"
    timeout: float = Field(300, gt=0, le=3600)
    max_seconds: float = Field(1800, gt=0, le=86400)
    max_requests: int = Field(100_000, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _lengths(cls, given: Any) -> Any:
        """Both lengths are to be said, unless the prompts are the user's."""
        if isinstance(given, dict):
            needed = {"output_tokens"} if given.get("prompts") else {"prompt_tokens", "output_tokens"}
            if missing := sorted(needed - given.keys(), reverse=True):
                raise ValueError(f"the load profile has no {' and no '.join(missing)}")
        return given

    @model_validator(mode="after")
    def _prefix_fits(self) -> Profile:
        if self.shared_prefix >= self.prompt_tokens:
            raise ValueError("shared_prefix must be shorter than prompt_tokens")
        return self

    @property
    def longest(self) -> int:
        """Tokens that any answer may have."""
        return max([self.output_tokens, *(prompt.output_tokens or 0 for prompt in self.given)])

    @cached_property
    def given(self) -> list[Prompt]:
        """The user's own prompts. ValueError names the line that is none.

        A line is JSON when it begins with a brace and speaks of a prompt or messages;
        else it is a text.
        """
        prompts = []
        for number, line in enumerate(self.prompts, 1):
            if not line.lstrip().startswith("{") or not any(key in line for key in KEYS):
                prompts += [Prompt(prompt=line)] if line.strip() else []
                continue
            try:
                prompts.append(Prompt.model_validate_json(line))
            except ValidationError as error:
                raise ValueError(f"prompt {number}: {'; '.join(problems(error))}") from None
        return prompts

    @model_validator(mode="after")
    def _prompts_hold(self) -> Profile:
        if self.prompts and not self.given:
            raise ValueError("prompts: no line holds one")
        if self.endpoint == "completions" and any(prompt.messages for prompt in self.given):
            raise ValueError("prompts: messages need the endpoint chat")
        return self

    def words(self) -> str:
        """As ``chat, 256 tokens in (128 of them shared), 256 out``."""
        shared = f" ({self.shared_prefix} of them shared)" if self.shared_prefix else ""
        own = f"{len(self.prompts)} prompts of the user's"
        prompts = own if self.prompts else f"{self.prompt_tokens} tokens in{shared}"
        return f"{self.endpoint}, {prompts}, {self.output_tokens} out"


def slice_seconds(duration: float) -> float:
    """How wide the slices of time are that a report shows of ``duration`` s."""
    return max(1.0, math.ceil(duration / SLICES))
