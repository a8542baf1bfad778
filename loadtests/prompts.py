"""What is asked: prompts of exact token lengths, by the server's own tokenizer, no two of
which begin alike.

A prompt is made of words that are one token each. Only its first words are new for every
request; the rest is made once a user: a prefix cache is asked for the beginning first,
and nothing after a difference can be found there.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_delivery.measure.profile import Profile

WORDS = Path(__file__).with_name("words.txt").read_text(encoding="utf-8").split()
FRESH = 16
TRIES, BATCH = 3, 8
Count = Callable[[str], int]


@dataclass(frozen=True)
class Vocabulary:
    """Words of one token each, and the tokens that every prompt has beside them;
    ``exact``: tried with the server's tokenizer.
    """

    words: tuple[str, ...] = tuple(WORDS)
    beside: int = 0
    exact: bool = False


def vocabulary(count: Count, length: int) -> Vocabulary:
    """Learn from ``count`` (tokens of a prompt) which words are one token each, and try a
    prompt of ``length``: ValueError when it does not fit.
    """
    start = " ".join(WORDS[:4])
    base = count(start)

    def single(words: list[str]) -> list[str]:
        """Those of ``words`` that are one token each; asked for together, and one by one
        where that does not hold.
        """
        if count(" ".join([start, *words])) == base + len(words):
            return words
        return [word for word in words if count(f"{start} {word}") == base + 1] if len(words) > 1 else []

    words = [word for at in range(0, len(WORDS), BATCH) for word in single(WORDS[at : at + BATCH])]
    if len(words) < FRESH:
        raise ValueError(f"only {len(words)} of {len(WORDS)} words are one token each")
    beside = count(" ".join(words[:4])) - 4
    dice = random.Random(length)  # noqa: S311
    number = max(1, length - beside)
    if any(count(" ".join(dice.choices(words, k=number))) != max(length, beside + 1) for _ in range(TRIES)):
        raise ValueError("the same number of words does not always make the same number of tokens")
    return Vocabulary(tuple(words), beside, exact=True)


def bodies(profile: Profile, model: str, known: Vocabulary, seed: str) -> Iterator[tuple[bytes, int]]:
    """Request bodies without end, each with the number of tokens that its answer must
    have (0: any number).
    """
    dice = random.Random(seed)  # noqa: S311
    asked = _given(profile, dice) if profile.prompts else _made(profile, known, seed)
    for question, output in asked:
        body = {
            "model": model,
            "max_tokens": output,
            "temperature": profile.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if profile.ignore_eos:
            body["ignore_eos"] = True
        yield json.dumps(body | question).encode(), output if profile.ignore_eos else 0


def question(profile: Profile, text: str) -> dict[str, Any]:
    """``text`` as the profile's endpoint takes it."""
    return {"prompt": text} if profile.endpoint == "completions" else {"messages": [{"role": "user", "content": text}]}


def _made(profile: Profile, known: Vocabulary, seed: str) -> Iterator[tuple[dict[str, Any], int]]:
    number = max(1, profile.prompt_tokens - known.beside)
    shared = random.Random("shared").choices(known.words, k=min(profile.shared_prefix, number - 1))  # noqa: S311
    dice = random.Random(seed)  # noqa: S311
    fresh = min(FRESH, number - len(shared))
    tail = dice.choices(known.words, k=number - len(shared) - fresh)
    while True:
        yield question(profile, " ".join([*shared, *dice.choices(known.words, k=fresh), *tail])), profile.output_tokens


def _given(profile: Profile, dice: random.Random) -> Iterator[tuple[dict[str, Any], int]]:
    """Every one of the user's prompts in a random order, then again in another."""
    while True:
        for one in dice.sample(profile.given, len(profile.given)):
            asked = {"messages": one.messages} if one.messages else question(profile, one.prompt)
            yield asked, one.output_tokens or profile.output_tokens
