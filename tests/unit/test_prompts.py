"""Prompts of exact lengths that no prefix cache knows; schedules that are what they
say.
"""

from __future__ import annotations

import json
import math
from itertools import islice, pairwise
from statistics import fmean, pstdev

import pytest

from model_delivery.loadtests.arrivals import schedule
from model_delivery.loadtests.prompts import Vocabulary, bodies, vocabulary
from model_delivery.measure.profile import Profile


def texts(profile: Profile, known: Vocabulary, seed: str = "1/0/0", number: int = 200) -> list[str]:
    return [json.loads(body)["messages"][0]["content"] for body, _ in islice(bodies(profile, "m", known, seed), number)]


def chat_tokens(text: str) -> int:
    """A tokenizer with a template of 7 tokens, for which every word with "th" is two
    tokens.
    """
    return 7 + sum(1 + ("th" in word) for word in text.split())


def test_prompts_have_the_asked_number_of_tokens() -> None:
    known = vocabulary(chat_tokens, 256)
    assert known.exact
    assert not [word for word in known.words if "th" in word]
    assert {chat_tokens(text) for text in texts(Profile(prompt_tokens=256, output_tokens=8), known)} == {256}


def test_a_tokenizer_that_does_not_add_up_is_refused() -> None:
    with pytest.raises(ValueError, match="does not always make the same number"):
        vocabulary(lambda text: len(text.split()) + (len(text.split()) > 100 and len(text) % 2), 256)


def test_no_two_prompts_begin_alike_and_a_shared_prefix_is_as_long_as_asked() -> None:
    known, number = Vocabulary(), 300
    profile = Profile(prompt_tokens=128, output_tokens=8)
    of_two_users = [*texts(profile, known, number=number), *texts(profile, known, "1/0/1", number)]
    assert len({tuple(text.split()[:8]) for text in of_two_users}) == 2 * number
    shared = [text.split() for text in texts(Profile(prompt_tokens=128, shared_prefix=48, output_tokens=8), known)]
    assert len({tuple(words[:48]) for words in shared}) == 1
    assert len({tuple(words[48:56]) for words in shared}) == len(shared)


def test_the_same_seed_asks_the_same() -> None:
    profile = Profile(prompt_tokens=32, output_tokens=8)
    assert texts(profile, Vocabulary(), "3/0/1") == texts(profile, Vocabulary(), "3/0/1")
    assert texts(profile, Vocabulary(), "3/0/1") != texts(profile, Vocabulary(), "4/0/1")


def test_a_users_own_prompts_are_all_asked_before_one_comes_again() -> None:
    lines = (
        "plain",
        '{"prompt": "from json", "output_tokens": 3}',
        '{"messages": [{"role": "system", "content": "s"}]}',
    )
    profile = Profile(prompts=lines, output_tokens=8, ignore_eos=True)
    asked = [(json.loads(body), due) for body, due in islice(bodies(profile, "m", Vocabulary(), "1"), 6)]
    for three in (asked[:3], asked[3:]):
        assert sorted(body["messages"][0]["content"] for body, _ in three) == ["from json", "plain", "s"]
        assert sorted(due for _, due in three) == [3, 8, 8]


@pytest.mark.parametrize("parts", [1, 4])
def test_poisson_arrivals_have_a_variation_of_one_and_the_asked_rate(parts: int) -> None:
    starts = sorted(
        at for part in range(parts) for at in islice(schedule("poisson", 200, "7", part, parts), 20_000 // parts)
    )
    gaps = [b - a for a, b in pairwise(starts[:15_000])]
    assert pstdev(gaps) / fmean(gaps) == pytest.approx(1, abs=0.03)
    assert 1 / fmean(gaps) == pytest.approx(200, rel=0.03)


def test_constant_arrivals_interleave() -> None:
    starts = sorted(at for part in range(4) for at in islice(schedule("constant", 8, "1", part, 4), 10))
    assert all(math.isclose(b - a, 1 / 8) for a, b in pairwise(starts))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"prompt_tokens": 5}, "no output_tokens"),
        ({"output_tokens": 5}, "no prompt_tokens"),
        ({"prompt_tokens": 5, "output_tokens": 5, "shared_prefix": 5}, "must be shorter"),
        ({"prompt_tokens": 5, "output_tokens": 5, "max_token": 5}, "Extra inputs"),
    ],
)
def test_a_wrong_profile_says_what_is_wrong(content: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Profile.model_validate(content)
