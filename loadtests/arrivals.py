"""What is asked, and when: seeded, so that a run can be repeated."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORDS = Path(__file__).with_name("words.txt").read_text(encoding="utf-8").split()


@dataclass(frozen=True)
class Plan:
    """A load: ``profile`` says what is asked, ``users`` (closed loop) or ``rate`` per second (open loop, Poisson) how often; times in s."""

    model: str
    profile: dict[str, Any]
    users: int | None
    rate: float | None
    warmup: float
    duration: float
    seed: int
    max_requests: int = 100_000


def bodies(plan: Plan, stream: int) -> Iterator[bytes]:
    """Request bodies without end; no two prompts begin alike, so that a prefix cache cannot flatter."""
    dice = random.Random(f"{plan.seed}/{stream}")  # noqa: S311
    profile = plan.profile
    given = profile.get("prompts")
    while True:
        prompt = dice.choice(given) if given else " ".join(dice.choices(WORDS, k=int(profile["prompt_tokens"])))
        body = {
            "model": plan.model,
            "max_tokens": int(profile["output_tokens"]),
            "temperature": profile.get("temperature", 0),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if profile.get("ignore_eos"):
            body["ignore_eos"] = True
        body |= {"prompt": prompt} if profile.get("endpoint") == "completions" else {"messages": [{"role": "user", "content": prompt}]}
        yield json.dumps(body).encode()


def poisson(rate: float, seed: int) -> Iterator[float]:
    """Intended starts in seconds from the beginning, on an absolute schedule."""
    dice, at = random.Random(seed), 0.0  # noqa: S311
    while True:
        at += dice.expovariate(rate)
        yield at
