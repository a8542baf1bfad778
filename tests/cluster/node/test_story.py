"""The story on a real node: a claim binds, a Job fetches, real vLLM answers in its pod,
Locust measures it in a Job, and it is promoted; again; healed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.cluster.node.lab import NAME, PULL, Lab, running_lab
from tests.parts.cluster import images
from tests.parts.cluster.node import Node

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def lab(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    pushed = {"runner": images.push_project(node.registry), "engine": images.push_engine(node.registry)}
    with running_lab(node, tmp_path_factory.mktemp("story"), images.model(), pushed) as made:
        yield made


def spec(lab: Lab, length: int = 1024, *args: str, expect: str = "Paris", **rollout: Any) -> Path:
    throughput = {"profile": "smoke", "users": 2, "warmup": "2s", "duration": "10s"}
    throughput |= {"slo": {"error_rate_max": 0, "ttft_p95_max": "60s", "output_tokens_per_second_min": 1}}
    smoke = {"prompt": "What is the capital of France?", "expect": expect, "max_tokens": 32}
    serving = {
        "args": ["--max-model-len", str(length), "--dtype", "bfloat16", "--enforce-eager", *args],
        "resources": {"limits": {"memory": "6Gi"}},
        "startup_timeout": "10m",
        "pod": PULL | {"shm": "512Mi"},
    }
    return lab.spec(
        lab.images["engine"], serving=serving, gates={"smoke": smoke, "throughput": throughput}, rollout=rollout
    )


def ask(lab: Lab, path: str, **body: Any) -> Any:
    asked = {"model": NAME, "max_tokens": 32, "temperature": 0, **body}
    return httpx.post(f"{lab.url}/v1/{path}", json=asked, trust_env=False, timeout=120).raise_for_status().json()


def answers(lab: Lab) -> bool:
    said = ask(lab, "chat/completions", messages=[{"role": "user", "content": "What is the capital of France?"}])
    return "Paris" in said["choices"][0]["message"]["content"]


def pods(lab: Lab) -> list[str]:
    return [one["metadata"]["uid"] for one in lab.there("pods", "model-delivery/release")]


def test_a_model_is_delivered(lab: Lab) -> None:
    said = lab.deliver("up", spec(lab))
    assert f"{NAME}: promoted" in said
    assert "fetch: 100 %" in said
    assert answers(lab)
    assert ask(lab, "completions", prompt="The capital of France is")["choices"][0]["text"]
    (claim,) = lab.there("pvc")
    assert claim["status"]["phase"] == "Bound"
    assert lab.record.serving
    assert len(pods(lab)) == 1


def test_a_rerun_changes_nothing(lab: Lab) -> None:
    before = pods(lab)
    assert f"{NAME}: unchanged" in lab.deliver("up", spec(lab))
    assert pods(lab) == before


@pytest.mark.parametrize("kind", ["service", "deployment"])
def test_what_kubectl_deletes_comes_back(lab: Lab, kind: str) -> None:
    for name in [one["metadata"]["name"] for one in lab.there(kind, f"model-delivery/delivery={NAME}")]:
        lab.node.kubectl("delete", kind, name, "-n", lab.namespace)
    assert f"{NAME}: healed" in lab.deliver("up", spec(lab))
    assert answers(lab)


def test_an_engine_that_stands_still_is_started_anew(lab: Lab, tmp_path: Path) -> None:
    assert f"{NAME}: up" in lab.deliver("status", NAME, "--namespace", lab.namespace, "--probe")
    before = pods(lab)
    (core,) = [one for one in psutil.process_iter() if "EngineCore" in "".join(one.cmdline())]
    core.suspend()
    said = lab.deliver("up", spec(lab))
    assert f"{NAME}: healed" in said
    assert "did not answer within" in said
    assert len(pods(lab)) == 1
    assert pods(lab) != before
    assert answers(lab)
    lab.deliver("history", NAME, "--namespace", lab.namespace, "--reports", tmp_path)
    assert {file.name for file in tmp_path.glob("*-silent/*")} == {"engine.log", "metrics.prom"}


def test_an_engine_that_cannot_start_is_told_in_its_own_words_and_the_old_release_answers(lab: Lab) -> None:
    serves, before = lab.record.serving, pods(lab)
    said = lab.deliver("up", spec(lab, 1024, "--no-such-flag"), code=1)
    assert "--no-such-flag" in said
    assert "exit code 2" in said
    assert "Traceback" not in said
    assert lab.record.serving == serves
    assert pods(lab) == before
    assert answers(lab)


def test_it_goes_down_and_leaves_the_weights(lab: Lab) -> None:
    lab.deliver("down", spec(lab))
    assert not lab.there("pods", "model-delivery/role=release")
    assert [one["metadata"]["name"] for one in lab.there("pvc")] == [f"{NAME}-models"]
