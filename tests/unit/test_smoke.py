"""The smoke step against a server that speaks vLLM's protocol and is told how to be
wrong.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path

import pytest

from model_delivery.base import EnvSecret
from model_delivery.measure.smoke import Check, SmokeReport
from model_delivery.measure.verdict import judge
from model_delivery.run.replicas import without_ended
from model_delivery.steps.smoke import SmokeInput, run
from model_delivery.values import World
from tests.parts.ports import free_port
from tests.parts.timing_engine import TimingServer

QUESTION = "What is the capital of France?"


def smoked(server: TimingServer, **more: object) -> SmokeReport:
    facts = {"url": server.url, "model_names": ("m",), "prompt": QUESTION, "expect": "Paris", "max_tokens": 16}
    return run(SmokeInput.model_validate(facts | more))


def failed(report: SmokeReport) -> list[str]:
    return [check.name for check in report.checks if not check.passed]


def test_a_sound_server_passes_every_check_by_name(model: Path) -> None:
    with TimingServer(model, "--max-model-len", "512", names=("m", "org/m")) as server:
        report = smoked(server, model_names=("m", "org/m"), max_model_len=512)
    assert report.passed
    assert report.answer == "The capital of France is Paris."
    assert {
        "health",
        "models",
        "chat",
        "chat stream",
        "completions",
        "completions stream (org/m)",
        "usage",
        "known answer",
    } <= {c.name for c in report.checks}


@pytest.mark.parametrize(
    ("flag", "checks"),
    [
        ("--wrong-answer", ["known answer"]),
        ("--stream-error", ["chat stream", "completions stream"]),
        ("--health-broken", ["health"]),
    ],
)
def test_what_is_wrong_is_named(model: Path, flag: str, checks: list[str]) -> None:
    with TimingServer(model, flag) as server:
        assert failed(smoked(server)) == checks


def test_another_length_than_asked_and_a_missing_name_are_named(model: Path) -> None:
    with TimingServer(model, "--max-model-len", "256") as server:
        report = smoked(server, max_model_len=512, model_names=("m", "other"))
    assert {"models", "max_model_len", "chat (other)"} <= set(failed(report))
    assert "the server says 256, asked was 512" in [check.detail for check in report.checks]


def test_an_address_that_leads_to_its_server_a_moment_later_is_waited_for(model: Path) -> None:
    """As a Service does, whose pod has just become ready."""
    server = TimingServer(model)
    with ThreadPoolExecutor(1) as pool:
        report = pool.submit(smoked, server)
        with pytest.raises(FutureTimeout):
            report.result(0.5)
        with server:
            assert report.result().passed


def test_a_server_that_dies_in_between_fails_the_checks_and_not_the_step(model: Path) -> None:
    with TimingServer(model, "--die-after", "2") as server:
        assert {"completions", "usage"} <= set(failed(smoked(server)))


@pytest.mark.parametrize(
    ("says", "why"),
    [
        ("ĠTheĠcapitalĠofĠFranceĠisĠParis.", "in the tokenizer's own marks"),
        ("▁Paris", "in the tokenizer's own marks"),
        ("It is \ufffd\ufffd Paris", "characters that are none"),
        ("Il-belt hija Ġnien f'Paris \ufffd", ""),
    ],
)
def test_an_answer_that_the_tokenizer_spoiled_is_none_though_it_holds_the_word(
    model: Path, says: str, why: str
) -> None:
    with TimingServer(model, "--says", says) as server:
        (told,) = [check for check in smoked(server).checks if check.name == "known answer"]
    assert told.passed == (not why)
    assert why in told.detail


def test_a_server_without_a_chat_template_says_so(model: Path) -> None:
    with TimingServer(model, "--no-chat-template") as server:
        report = smoked(server)
    assert {"chat", "chat stream"} < set(failed(report))
    assert "you must provide a chat template" in report.model_dump_json()


def test_a_key_that_is_set_and_not_asked_for_is_told(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "s3cret")
    with TimingServer(model, "--no-auth", environ={"VLLM_API_KEY": "s3cret"}) as server:
        assert failed(smoked(server, api_key=EnvSecret(env="KEY"))) == ["no key"]
        assert failed(smoked(server)) == []


def test_a_key_is_sent_and_never_told(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "s3cret")
    with TimingServer(model, environ={"VLLM_API_KEY": "s3cret"}) as server:
        report = smoked(server, api_key=EnvSecret(env="KEY"))
        refused = smoked(server)
    assert report.passed
    assert "s3cret" not in report.model_dump_json()
    assert "/v1/models answers 401" in refused.model_dump_json()


def asked_each(server: TimingServer, **replicas: str) -> dict[str, Check]:
    """What is said of each replica; ``server`` is whom the balancer happens to choose."""
    return {check.replica: check for check in smoked(server, replicas=replicas).checks if check.replica}


@pytest.mark.parametrize(
    ("flag", "why"),
    [
        ("--wrong-answer", "'Paris' is not in"),
        ("--health-broken", "/health answers 503"),
        ("--says=ĠParis", "in the tokenizer's own marks"),
        ("--no-chat-template", "you must provide a chat template"),
    ],
)
def test_a_bad_replica_that_the_balancer_did_not_choose_is_refused_by_its_name(
    model: Path, flag: str, why: str
) -> None:
    with TimingServer(model) as good, TimingServer(model, flag) as bad:
        report = smoked(good, replicas={"pod-a": good.url, "pod-b": bad.url})
    assert failed(report) == ["replica pod-b"]
    (found,) = judge(report, None, None).findings()
    assert found.code == "gate.replica"
    assert "pod-b" in found.what
    assert why in found.what


def test_each_replica_is_asked_with_the_key_and_by_the_name_that_it_must_serve(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY", "s3cret")
    key = {"VLLM_API_KEY": "s3cret"}
    with TimingServer(model, environ=key) as good, TimingServer(model, environ=key, names=("other",)) as bad:
        report = smoked(good, replicas={"a": good.url, "b": bad.url}, api_key=EnvSecret(env="KEY"))
    assert failed(report) == ["replica b"]
    assert "m not served; served: other" in report.model_dump_json()


def test_a_replica_out_of_reach_is_not_called_bad_and_the_report_says_so(model: Path) -> None:
    with TimingServer(model) as good:
        told = asked_each(good, a=good.url, b=f"http://127.0.0.1:{free_port()}")
    assert told["a"].detail.startswith("/health answers 200; 'Paris' is in")
    assert told["b"].passed
    assert "not judged: it is not reached from here (connection: ConnectionRefusedError" in told["b"].detail


def test_one_engine_alone_is_asked_once(model: Path) -> None:
    with TimingServer(model) as server:
        assert asked_each(server, only=server.url) == {}


def test_a_replica_that_was_ended_meanwhile_is_not_called_bad() -> None:
    def pod(name: str, phase: str = "Running", **metadata: str) -> dict[str, object]:
        return {"metadata": {"name": name, **metadata}, "status": {"phase": phase}}

    names = ("crashed", "drained", "evicted", "gone")
    checks = (Check(name=f"replica {name}", passed=False, detail="no", seconds=0, replica=name) for name in names)
    service = Check(name="chat", passed=False, detail="no", seconds=0)
    pods = (pod("crashed"), pod("drained", deletionTimestamp="now"), pod("evicted", "Failed"))
    left = without_ended(SmokeReport(checks=(service, *checks), answer=""), World("small", {}, 0, beside={"Pod": pods}))
    assert left is not None
    assert failed(left) == ["chat", "replica crashed"]
    assert "its pod was ended meanwhile (no)" in left.checks[-1].detail


def test_what_has_one_engine_is_asked_and_told_as_before_there_were_replicas(model: Path) -> None:
    """Jobs of before are found again by their input, and images of before read it."""
    facts = {"url": "http://m", "model_names": ["m"], "prompt": "x", "expect": "x", "max_tokens": 1}
    assert SmokeInput.model_validate(facts).model_dump(mode="json").keys() == {*facts, "api_key", "max_model_len"}
    check = {"name": "chat", "passed": True, "detail": "", "seconds": 0.0}
    assert Check.model_validate(check).model_dump() == check
