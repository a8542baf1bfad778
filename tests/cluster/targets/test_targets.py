"""T9k (its controller is a stand-in) and KServe (its real manager) on a real node, with real vLLM: dark, promoted, rolled back, refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.cluster.node.lab import NAME, Lab, running_lab
from tests.cluster.node.test_story import answers, pods, spec
from tests.parts.cluster import images
from tests.parts.cluster.node import ADDRESS, Node
from tests.parts.cluster.waiting import until
from tests.parts.gateway import running_gateway
from tests.parts.kserve import running_kserve
from tests.parts.t9k import running_t9k

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module", params=["t9k", "kserve"])
def lab(request: pytest.FixtureRequest, node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    pushed = {"runner": images.push_project(node.registry), "engine": images.push_engine(node.registry)}
    folder = tmp_path_factory.mktemp(request.param)
    with controller(node, request.param), running_lab(node, folder, images.model(), pushed, request.param) as made:
        yield made


@contextmanager
def controller(node: Node, kind: str) -> Iterator[None]:
    if kind == "kserve":
        with running_kserve(node):
            yield
        return
    with running_gateway(node, ADDRESS, 80) as gateway, node.namespace() as edge:
        node.apply(gateway.gateway(edge))
        with running_t9k(node, domain="ksvc.test", gateway=f"{edge}/gateway"):
            yield


def length_at(url: str) -> int | None:
    """The longest context of the engine that answers there; None while nobody does."""
    try:
        answer = httpx.get(f"{url}/v1/models", trust_env=False, timeout=5)
    except httpx.TransportError:
        return None
    return int(answer.json()["data"][0]["max_model_len"]) if answer.is_success else None


def dark_url(lab: Lab) -> str | None:
    """Where the release that has no traffic is, once its own object says so."""
    if lab.kind == "t9k":
        (found,) = lab.there("mlservices")
        dark = [one for one in found.get("status", {}).get("releases", ()) if one["name"] != found["spec"]["default"] and one.get("ready")]
        return dark[0]["url"] if dark else None
    serving = f"{NAME}-{lab.record.serving}"
    names = [one["metadata"]["name"] for one in lab.there("inferenceservices") if one["metadata"]["name"] != serving]
    return f"http://{names[0]}-predictor.{lab.namespace}.svc" if names else None


def test_a_model_is_delivered_and_a_rerun_changes_nothing(lab: Lab) -> None:
    assert f"{NAME}: promoted" in lab.deliver("up", spec(lab))
    assert answers(lab)
    before = pods(lab)
    assert f"{NAME}: unchanged" in lab.deliver("up", spec(lab))
    assert pods(lab) == before


def test_a_second_release_is_dark_at_its_own_address_until_it_is_promoted(lab: Lab) -> None:
    first = lab.record.serving
    canary: dict[str, Any] = {"strategy": "canary", "steps": [50], "soak": "0s"} if lab.kind == "t9k" else {}
    with lab.begin("up", spec(lab, 768, **canary)) as run:
        until(lambda: (url := dark_url(lab)) and length_at(url) == 768, 300, "no dark release answers")
        assert length_at(lab.url) == 1024
        said, _ = run.communicate()
    assert run.returncode == 0, said
    assert f"{NAME}: promoted" in said
    assert length_at(lab.url) == 768
    assert lab.record.previous == first


def test_a_release_that_answers_wrong_is_withdrawn(lab: Lab) -> None:
    serving, before = lab.record.serving, pods(lab)
    said = lab.deliver("up", spec(lab, 640, expect="Atlantis"), code=4)
    assert "Atlantis" in said
    assert (lab.record.serving, lab.record.candidate) == (serving, None)
    until(lambda: pods(lab) == before, 60, "the refused release's pod stays")
    assert answers(lab)


def test_it_is_rolled_back_and_taken_down(lab: Lab) -> None:
    lab.deliver("rollback", NAME, "--namespace", lab.namespace)
    assert length_at(lab.url) == 1024
    lab.deliver("down", NAME, "--namespace", lab.namespace)
    until(lambda: not lab.there("pods", "model-delivery/release"), 90, "its pods stay")
    kind = {"t9k": "mlservices", "kserve": "inferenceservices"}[lab.kind]
    assert not json.loads(lab.node.kubectl("get", kind, "-n", lab.namespace, "-o", "json"))["items"]
