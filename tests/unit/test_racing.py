"""Which loader wins a race, what two answers must have in common, and where a race is
refused before anything is touched.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model_delivery.base import BadInput
from model_delivery.places.host.engines import environment_folder, has_module
from model_delivery.run.plan import unchanged_digest
from model_delivery.run.racing import Choice, unlike, winner, words
from model_delivery.run.record import Lap, Race
from model_delivery.spec import parse_spec
from model_delivery.values import Engine, Environment, Lock, Phase, Snapshot
from model_delivery.values.engine import Loader


def lap(loader: str, healthy: float | None, weights: float | None = None, out: str = "") -> Lap:
    times = {Phase.WEIGHTS: weights, Phase.HEALTHY: healthy}
    return Lap(loader, {phase: at for phase, at in times.items() if at is not None}, out)


@pytest.mark.parametrize(
    ("laps", "won"),
    [
        ([], "default"),
        ([lap("default", 40)], "default"),
        ([lap("default", 40), lap("a", 37.9), lap("b", 37)], "b"),
        ([lap("default", 40), lap("a", 38.5)], "default"),  # 5 % of 40 s are 2
        ([lap("default", 8), lap("a", 7.1)], "default"),  # less than a second is noise
        ([lap("default", 8), lap("a", 7.0)], "a"),
        ([lap("default", 40), lap("a", 20, out="another text"), lap("b", 30)], "b"),
        ([lap("default", 40, out="it ended"), lap("a", 20)], "default"),  # nothing to be measured by
        ([lap("a", 20)], "default"),
        ([lap("default", 40), lap("a", None)], "default"),
        ([lap("default", 40, 20), lap("a", 30, 21)], "default"),  # faster, but not by its weights
        ([lap("default", 40, 20), lap("a", 30, 11), lap("b", 29)], "b"),
        ([lap("default", 40), lap("a", 30, 11)], "a"),
    ],
)
def test_the_winner_is_surely_faster_with_equal_answers_else_nothing_changes(laps: list[Lap], won: str) -> None:
    assert winner(laps) == won
    assert winner(reversed(laps)) == won


def test_a_race_is_told_in_one_line() -> None:
    laps = (lap("default", 9.8, 4.0), lap("prefetch", 7.1, 2.0), lap("runai", None, out="it is not there"))
    told = "default 9.8 s (weights 4.0 s); prefetch 7.1 s (weights 2.0 s), won; runai out: it is not there"
    assert words(Race(laps, "prefetch")) == told
    assert words(None) == ""


def choice(text: str = "a b", tokens: tuple[str, ...] = ("a", " b"), sure: float = -0.5, other: str = "c") -> Choice:
    given: dict[str, Any] = {"tokens": tokens, "top_logprobs": [None, {" b": sure, other: -2.0}]}
    return Choice.model_validate({"text": text, "logprobs": given})


@pytest.mark.parametrize(
    ("others", "why"),
    [
        (choice(), ""),
        (choice(sure=-0.5005), ""),
        (choice(sure=-0.502), "its answer 2 has other log-probabilities"),
        (choice(other="d"), "its answer 2 has other log-probabilities"),
        (choice(text="a c"), "its answer 2 has another text"),
        (choice(tokens=("a b",)), "its answer 2 has another text"),
        (choice(sure=float("nan")), "its answer 2 has other log-probabilities"),
    ],
)
def test_answers_are_equal_in_text_tokens_and_certainty(others: Choice, why: str) -> None:
    assert unlike([choice(), choice()], [choice(), others]) == why


def spec(target: dict[str, Any] | None = None, lock: dict[str, Any] | None = None, **serving: Any) -> dict[str, Any]:
    return {
        "apiVersion": "model-delivery/v1",
        "name": "m",
        "model": {"source": "local", "path": "/model"},
        "serving": {"loader": "race", **serving},
        "target": target or {"kind": "process", "engine": "vllm-cpu"},
        **({"lock": lock} if lock else {}),
    }


IN_A_CLUSTER: dict[str, Any] = {"namespace": "demo", "image": "vllm/vllm-openai:v0.33.0"}
SNAPSHOT = {"source": "local", "key": "k", "commit": "c" * 40, "files": ()}


@pytest.mark.parametrize("kind", ["deployment", "kserve", "t9k"])
def test_a_race_in_a_cluster_is_refused(kind: str) -> None:
    given = spec({"kind": kind, **IN_A_CLUSTER}) | {"storage": {"claim": "models"}}
    with pytest.raises(BadInput, match=r"serving\.loader: loaders race on a host only, not on target") as bad:
        parse_spec(given)
    assert bad.value.exit_code == 2


@pytest.mark.parametrize("arg", ["--load-format=runai_streamer", "--safetensors_load_strategy", "--load-form"])
def test_a_loader_of_the_users_own_does_not_race(arg: str) -> None:
    with pytest.raises(BadInput, match="race chooses the loader, and so does --"):
        parse_spec(spec(args=[arg]))


def locked(loader: str | None) -> dict[str, Any]:
    engine = Engine(name="e", command=("x",), loaders={"fast": Loader(args=("--fast",))})
    return {"snapshot": SNAPSHOT, "engine": engine.model_dump(mode="json"), **({"loader": loader} if loader else {})}


@pytest.mark.parametrize(
    ("loader", "serving", "why"),
    [
        ("slow", {}, "must be default or one of lock.engine.loaders"),
        ("../x", {}, "lock.loader"),
        ("fast", {"loader": "default"}, "serving.loader is not race"),
    ],
)
def test_a_lock_names_a_loader_that_could_have_won(loader: str, serving: dict[str, Any], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        parse_spec(spec(lock=locked(loader), **serving))


def test_what_does_not_race_is_written_as_it_always_was() -> None:
    plain = parse_spec(spec(loader="default"))
    assert "loader" not in plain.model_dump(mode="json")["serving"]
    lock = Lock(snapshot=Snapshot.model_validate(SNAPSHOT), engine=Engine(name="e", command=("x",)))
    dumped = lock.model_dump(mode="json")
    assert dumped.keys() == {"snapshot", "engine", "image"}
    assert "loaders" not in dumped["engine"]


def test_the_winner_is_no_part_of_what_a_release_is() -> None:
    racing = parse_spec(spec())
    lock = Lock.model_validate(locked(None))
    won = lock.model_copy(update={"loader": "fast"})
    assert unchanged_digest(racing, lock) == unchanged_digest(racing, won)
    assert unchanged_digest(racing, lock) != unchanged_digest(parse_spec(spec(loader="default")), lock)


def test_a_loader_whose_module_the_environment_lacks_is_not_there(tmp_path: Path) -> None:
    engine = Engine(name="e", command=("x",), environment=Environment(key="k"))
    packages = environment_folder(engine, tmp_path) / "lib" / "python3.12" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "fastsafetensors").mkdir()
    assert has_module(engine, tmp_path, "fastsafetensors")
    assert not has_module(engine, tmp_path, "runai_model_streamer")
