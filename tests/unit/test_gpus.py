"""What a release takes of GPUs, as its spec says it, and what a user sees of it: a
library of NVML's name tells of the cards.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model_delivery.spec import parse_spec
from model_delivery.targets.process import ProcessPayload
from model_delivery.values import Wanted, ranks, wanted
from tests.parts.gpus import Card, Driver
from tests.parts.ports import free_port
from tests.unit.test_cli import deliver, home, spec

__all__ = ["home"]

SHARE = "--gpu-memory-utilization"


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ("", 0),
        ("--tensor-parallel-size 2", 2),
        ("--tensor_parallel_size=2 --pipeline-parallel-size 3", 6),
        ("-tp 2 -pp=2", 4),
        ("--tensor-par 8", 8),
        ("--tensor-parallel-size 2 --tensor-parallel-size 4", 4),
        ("-tp 2 --data-parallel-size 2", 4),
        ("-tp 2 --data-parallel-size 2 --data-parallel-size-local 1", 0),
        ("-tp 8 --nnodes 2", 0),
        ("--tensor-parallel-size two", 0),
        ("--tensor-parallel-size", 0),
        ("--served -tp", 0),
        ("=2", 0),
    ],
)
def test_the_ranks_are_read_as_the_engines_parser_reads_them(words: str, count: int) -> None:
    assert ranks(words.split()) == count


def asked(args: str = "", gpus: int = 0, env: dict[str, str] | None = None, **engine: Any) -> Wanted:
    return wanted({"args": args.split(), "gpus": gpus, "env": env or {}, "engine": engine})


def test_limits_count_before_arguments_and_a_share_is_of_one_card() -> None:
    assert asked() == Wanted(0, 0.92)
    assert asked(gpus=4) == Wanted(4, 0.92)
    assert asked("-tp 2") == Wanted(2, 0.92)
    assert asked(f"-tp 2 {SHARE} .5", gpus=4) == Wanted(4, 0.5)
    assert asked(f"{SHARE}=0.3") == Wanted(1, 0.3)
    assert [asked(f"{SHARE} {text}").share for text in ("0", "1.5", "nan", "1e-1", "-1", "1")] == [0.92] * 5 + [1.0]


def test_an_engine_for_the_cpu_and_one_that_is_told_its_cards_take_what_their_limits_say() -> None:
    assert not asked("-tp 2", environment={"torch_backend": "cpu"}).count
    assert not asked("-tp 2", variables={"VLLM_CPU_KVCACHE_SPACE": "1"}).count
    assert not asked(f"{SHARE} 0.4", env={"CUDA_VISIBLE_DEVICES": "3"}).count
    assert asked("-tp 2", environment={"torch_backend": None}).count == 2


def test_a_payload_is_what_it_was_with_and_without_a_share() -> None:
    """Else an upgrade would roll every delivery."""
    keys = {"engine", "model", "store", "names", "args", "chat_template", "env", "secret_env", "api_key"}
    assert set(ProcessPayload.model_fields) == keys | {"port", "cpus", "gpus", "memory"}


@pytest.mark.parametrize(
    ("gpus", "words", "wrong"),
    [
        (1, "[-tp, '2']", True),
        (2, "[-tp, '2']", False),
        (4, "[--tensor-parallel-size=2, -pp, '2']", False),
        (2, "[]", False),
    ],
)
def test_limits_and_ranks_that_differ_are_a_bad_spec(
    home: Path, model: Path, gpus: int, words: str, wrong: bool
) -> None:
    more = f"serving: {{args: {words}, resources: {{limits: {{nvidia.com/gpu: {gpus}}}}}}}\n"
    done = deliver(home, "plan", str(spec(home.parent, model, free_port(), more)))
    assert done.returncode == (2 if wrong else 3)  # else there is no such card here
    said = "serving.resources.limits: nvidia.com/gpu is 1, but serving.args spread the model over 2" in done.stderr
    assert said is wrong, done.stderr
    assert not home.exists()


def test_a_cluster_judges_its_limits_itself() -> None:
    given = {
        "apiVersion": "model-delivery/v1", "name": "m", "model": {"source": "local", "path": "/m"},
        "target": {"kind": "deployment", "image": "vllm/vllm-openai:v0.26.0", "context": "c", "namespace": "n"},
        "storage": {"claim": "models", "size": "1Gi"},
        "serving": {"args": ["-tp", "2"], "resources": {"limits": {"nvidia.com/gpu": 4}}},
    }  # fmt: skip
    assert not list(parse_spec(given).faults())


class Delivery:
    """One on this host, whose cards ``driver`` tells of."""

    def __init__(self, home: Path, model: Path) -> None:
        self.home, self.port = home, free_port()
        self.driver, self.bare = Driver(home.parent), spec(home.parent, model, self.port).read_text()

    def file(self, *args: str, rollout: str = "standby: 30m") -> Path:
        file = self.home.parent / "spec.yaml"
        file.write_text(self.bare.replace("standby: 0s", rollout) + f"serving: {{args: {json.dumps(args)}}}\n")
        return file

    def told(self, *words: str, code: int = 0) -> Any:
        done = deliver(self.home, *words, "--json", **self.driver.environ)
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)

    def running(self) -> dict[str, dict[str, Any]]:
        return {row["release"]: row for row in self.told("status", "small")["running"]}


@pytest.fixture
def small(home: Path, model: Path) -> Iterator[Delivery]:
    made = Delivery(home, model)
    yield made
    deliver(home, "down", "small")


def test_status_shows_the_cards_of_what_serves_and_of_the_standby(small: Delivery) -> None:
    small.driver.tells(Card(total=140))
    first = small.told("up", str(small.file(SHARE, "0.3")))["release"]
    second = small.told("up", str(small.file(SHARE, "0.6")))["release"]
    pids = {name: row["pid"] for name, row in small.running().items()}
    small.driver.tells(Card(total=140, held={pids[first]: 43, pids[second]: 85, os.getpid(): 0.5}))
    seen = small.running()
    assert seen[first]["cards"] == [{"index": 0, "share": 30.0, "bytes": 43 << 30}]
    assert seen[second]["cards"] == [{"index": 0, "share": 60.0, "bytes": 85 << 30}]
    text = deliver(small.home, "status", "small", **small.driver.environ, COLUMNS="200").stdout
    assert "0: 30 %, 43.0 GiB" in text
    assert "0: 60 %, 85.0 GiB" in text
    listed = deliver(small.home, "list", **small.driver.environ, COLUMNS="200").stdout
    assert "0: 60 %, 85.0 GiB" in listed
    assert "0: 30 %, 43.0 GiB" not in listed, "of what serves alone"


def test_a_share_that_does_not_fit_is_refused_with_figures_unless_the_old_may_go_first(small: Delivery) -> None:
    small.driver.tells(Card(total=140))
    first = small.told("up", str(small.file(SHARE, "0.5")))["release"]
    done = deliver(small.home, "up", str(small.file(SHARE, "0.6")), **small.driver.environ)
    assert done.returncode == 3
    assert "host.no-room" in done.stderr
    said = " ".join(done.stderr.split())
    assert "1 GPU wanted, with 60% of the memory of each and 1.5 GiB beside other engines, 0 of 1" in said
    assert f"GPU 0 (NVIDIA H200): 140.0 of 140.0 GiB free; small {first} has 50%, 0.0 in use" in said
    assert list(small.running()) == [first]
    again = small.file(SHARE, "0.6", rollout="standby: 0s, when_full: recreate")
    second = small.told("up", str(again))["release"]
    assert {name: row["cards"][0]["share"] for name, row in small.running().items()} == {second: 60.0}


def test_without_a_card_nothing_is_told_of_any(small: Delivery) -> None:
    small.told("up", str(small.file()))
    assert [row["cards"] for row in small.running().values()] == [[]]
    assert "on GPUs" not in deliver(small.home, "list", COLUMNS="200").stdout
