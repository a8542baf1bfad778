"""A second source gives what the first cannot, by its sha256 or not at all; what came
from where is recorded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_delivery.base import Permanent, Progress, Refused, Retryable, sink
from model_delivery.models.manifest import read_manifest
from model_delivery.models.sources.huggingface import HuggingFaceModel
from model_delivery.run.resolve import resolve_model, upstream
from model_delivery.spec import DeliverySpec
from model_delivery.steps.fetch import run as fetch
from tests.fetch.fetching import WEIGHTS, given, models, whole
from tests.parts.hubs import Hub
from tests.parts.hubs.huggingface import REPO, HuggingFaceHub, running_hub
from tests.parts.hubs.modelscope import running_modelscope
from tests.parts.ports import free_port
from tests.parts.tiny_model import tiny_model


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HuggingFaceHub]:
    with running_hub(tiny_model(tmp_path / "first", size=3_000_000)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_modelscope(tiny_model(tmp_path / "second", size=3_000_000)) as hub:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.url)
        hub.files["configuration.json"] = b'{"only": "here"}'
        yield hub


def model(**more: object) -> HuggingFaceModel:
    fallback = [{"source": "modelscope", "repo": REPO, "revision": "master"}]
    return HuggingFaceModel.model_validate({"source": "huggingface", "repo": REPO, "fallback": fallback, **more})


def sums(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(body).hexdigest() for name, body in files.items()}


@pytest.mark.parametrize("fault", ["missing", "flipped"])
def test_a_file_that_the_first_cannot_give_comes_from_the_second(
    first: HuggingFaceHub, second: Hub, root: Path, fault: str
) -> None:
    wanted = given(root, model())
    setattr(first, fault, WEIGHTS)
    heard: list[Progress] = []
    with sink(heard.append):
        done = fetch(wanted)
    whole(done, first.files)
    assert done.origins == {f"huggingface {REPO}": 2, f"modelscope {REPO}": 1}
    manifest = read_manifest(Path(done.path))
    assert manifest is not None
    assert {entry.path: entry.origin for entry in manifest.files}[WEIGHTS] == f"modelscope {REPO}"
    assert any(f"{WEIGHTS} is taken from modelscope {REPO}" in news.note for news in heard)


def test_a_second_source_with_other_weights_is_refused_by_name_before_a_byte(
    first: HuggingFaceHub, second: Hub, root: Path
) -> None:
    wanted = given(root, model())
    first.missing = WEIGHTS
    second.files[WEIGHTS] = first.files[WEIGHTS][:-1] + b"\1"
    with pytest.raises(Refused, match=rf"modelscope {REPO} has another model\.safetensors"):
        fetch(wanted)
    assert second.sent == 0
    assert models(root) == []


def test_both_refusals_are_told(first: HuggingFaceHub, second: Hub, root: Path) -> None:
    wanted = given(root, model())
    first.missing = second.missing = WEIGHTS
    with pytest.raises(Refused) as said:
        fetch(wanted)
    assert [finding.why.split("?")[0] for finding in said.value.findings] == [
        f"{first.url}/{REPO}/resolve/{first.commit}/{WEIGHTS}",
        f"{second.url}/api/v1/models/{REPO}/repo",
    ]


def test_when_the_first_is_down_and_nothing_is_known_the_weights_are_refused_by_name(
    second: Hub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(
        Retryable,
        match=r"the weights of modelscope org/model are refused: nobody but .* states the sha256 of model\.safetensors",
    ):
        given(root, model())
    assert not root.exists()


def test_when_the_first_is_down_a_pin_lets_the_second_give_the_model(
    second: Hub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    pinned = model(pins={WEIGHTS: sums(second.files)[WEIGHTS]})
    done = fetch(given(root, pinned))
    whole(done, second.files)
    assert done.origins == {f"modelscope {REPO}": 4}


def test_a_pin_that_differs_from_what_a_source_lists_is_refused(first: HuggingFaceHub, root: Path) -> None:
    with pytest.raises(Refused, match=r"model\.safetensors is not what model\.pins says"):
        given(root, model(pins={WEIGHTS: "0" * 64}))


def test_a_pin_for_a_file_without_a_sha256_is_what_its_bytes_must_have(first: HuggingFaceHub, root: Path) -> None:
    whole(fetch(given(root, model(pins={"tokenizer.json": sums(first.files)["tokenizer.json"]}))), first.files)
    with pytest.raises(Permanent, match=r"tokenizer\.json is not what was listed"):
        fetch(given(root / "other", model(pins={"tokenizer.json": "0" * 64}, fallback=[])))


def test_when_the_first_is_down_the_model_of_the_last_record_stays(
    first: HuggingFaceHub, second: Hub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = resolve_model(model())
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    heard: list[Progress] = []
    with sink(heard.append):
        wanted = given(root, model(), last)
    assert wanted.snapshot == last
    assert f"the model stays at commit {last.commit} of the last record" in heard[0].note
    done = fetch(wanted)
    whole(done, first.files)
    assert done.origins == {f"modelscope {REPO}": 3}


def test_the_first_ones_token_is_never_sent_to_the_second(
    first: HuggingFaceHub, second: Hub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRST", "first-secret-of-the-tests")
    monkeypatch.setenv("SECOND", "second-secret-of-the-tests")
    fallback = [{"source": "modelscope", "repo": REPO, "revision": "master", "token": {"env": "SECOND"}}]
    wanted = given(root, model(token={"env": "FIRST"}, fallback=fallback))
    first.missing = WEIGHTS
    fetch(wanted)
    assert first.tokens == {"Bearer first-secret-of-the-tests"}
    assert second.tokens == {"Bearer second-secret-of-the-tests"}


def test_what_upstream_has_now_is_never_said_by_a_fallback(first: HuggingFaceHub, second: Hub) -> None:
    target = {"kind": "process", "engine": "vllm-cpu", "port": 8000}
    known = {
        "apiVersion": "model-delivery/v1",
        "name": "small",
        "model": model(pins=sums(second.files)),
        "target": target,
    }
    ask = upstream(DeliverySpec.model_validate(known))["snapshot"]
    assert ask().commit == first.commit
    first.status, first.busy_times, first.error_code = 404, -1, "RepoNotFound"
    with pytest.raises(Refused):
        ask()
    assert not second.asked
