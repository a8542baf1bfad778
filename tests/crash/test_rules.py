"""The rules of a release that an undisturbed run shows: standby, hold, requests,
attempts, the lease.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model_delivery.base import sink
from model_delivery.spec import DeliverySpec, parse_spec
from model_delivery.values import RECORD, Ref
from tests.crash.lab import NAME, Lab, Result


def scheduled(lab: Lab, spec: DeliverySpec) -> Result:
    from model_delivery.flows.deliver import deliver

    return lab.run(lambda: deliver.fn(spec, None, True))


def engines(lab: Lab) -> dict[str, int]:
    """Release → process id of those that run."""
    return {
        ref.name: o.status["pid"]
        for ref, o in lab.host.world(NAME).objects.items()
        if ref.kind.name == "Engine" and o.status["alive"]
    }


def with_standby(lab: Lab, **rollout: Any) -> tuple[str, str]:
    """Two deliveries, the first on standby; returns both releases."""
    old = lab.deliver(lab.untested()).said["release"]
    new = lab.deliver(lab.untested(standby="1h", **rollout)).said["release"]
    assert set(engines(lab)) == {old, new}
    return old, new


def test_a_rollback_goes_to_the_standby_that_still_runs(lab: Lab) -> None:
    old, _ = with_standby(lab)
    pid = engines(lab)[old]
    assert lab.rollback(None).code == 0
    assert engines(lab) == {old: pid}
    lab.converged(old)


def test_a_new_release_ends_a_standby_before_it_starts(lab: Lab) -> None:
    old, new = with_standby(lab)
    third = lab.deliver(lab.untested())
    assert third.code == 0, third.said
    effects = [ref for when, _, ref in third.events if when == "after"]
    assert effects.index(f"Engine/{old}") < effects.index(f"Engine/{third.said['release']}")
    assert lab.record.previous == new
    lab.converged(third.said["release"])


def test_a_standby_ends_with_the_first_delivery_after_its_time(lab: Lab) -> None:
    lab.deliver(lab.untested())
    spec = lab.untested(standby="3s")
    new = lab.deliver(spec).said["release"]
    end = lab.record.stop_after
    assert end is not None
    while time.time() < end:
        lab.host.hint(NAME, 0.2)
    assert lab.deliver(spec).said["result"] == "unchanged"
    assert lab.record.stop_after is None
    lab.converged(new)


def test_what_a_rollback_left_is_held_until_it_is_asked_for_by_hand_or_changes(lab: Lab) -> None:
    old = lab.deliver(lab.untested()).said["release"]
    spec = lab.untested()
    left = lab.deliver(spec).said["release"]
    assert lab.rollback(None).code == 0
    held = scheduled(lab, spec)
    assert (held.code, held.said["result"], held.said["release"]) == (0, "held", old)
    lab.converged(old)
    again = lab.rollback(None)
    assert again.code == 3, "a bare rollback never goes to what was rolled back from"
    assert left in again.said["trouble"]
    assert lab.deliver(spec).said["release"] == left
    assert lab.rollback(None).code == 0
    changed = scheduled(lab, lab.untested())
    assert changed.said["result"] == "promoted"
    assert lab.record.held is None


def test_a_schedule_tries_what_a_gate_refused_only_again_when_it_changes_or_is_asked_for(lab: Lab) -> None:
    serving = lab.deliver(lab.untested()).said["release"]
    content = lab.untested().model_dump(mode="json")
    bad = parse_spec(content | {"gates": {"smoke": {"expect": "Rome"}, "throughput": None}})
    assert scheduled(lab, bad).code == 4
    again = scheduled(lab, bad)
    assert (again.code, again.said["result"], again.said["release"]) == (0, "held", serving)
    assert not [event for event in again.events if event[2].startswith("Engine/")]
    assert "held (gate failed " in lab.says("status", NAME)
    assert lab.deliver(bad).code == 4, "asked for by hand"
    assert scheduled(lab, bad).said["result"] == "held"
    assert scheduled(lab, lab.untested()).said["result"] == "promoted"
    assert "held" not in lab.says("status", NAME)


def test_a_schedule_leaves_a_killed_rollback_to_its_rerun(lab: Lab) -> None:
    old = lab.deliver(lab.untested()).said["release"]
    spec = lab.untested()
    lab.deliver(spec)
    assert lab.rollback(old, kill_at=1).code is None
    candidate = lab.record.candidate
    assert candidate is not None
    assert scheduled(lab, spec).said["result"] == "held"
    assert lab.record.candidate == candidate
    assert lab.rollback(old).code == 0
    lab.converged(old)


def test_a_request_that_has_ended_reports_how_and_another_is_another_attempt(lab: Lab) -> None:
    serving = lab.deliver(lab.untested()).said["release"]
    failing = lab.untested()
    failing = DeliverySpec.model_validate(
        failing.model_dump(mode="json") | {"gates": {"smoke": {"expect": "Rome"}, "throughput": None}}
    )
    first = lab.deliver(failing, request="once")
    assert first.code == 4, first.said
    again = lab.deliver(failing, request="once")
    assert again.code == 4
    assert "'Rome' is not in" in again.said["trouble"]
    assert not [ref for _, _, ref in again.events if ref.startswith("Engine/")]
    assert lab.deliver(failing, request="twice").code == 4
    assert [(e.outcome, e.attempt, e.request) for e in lab.record.ended[1:]] == [
        ("gate failed", 1, "once"),
        ("gate failed", 2, "twice"),
    ]
    lab.converged(serving)


def test_history_names_the_gate_and_a_plan_that_other_gates_count_from_the_next_release_on(lab: Lab) -> None:
    spec = lab.untested()
    lab.deliver(spec)
    content = spec.model_dump(mode="json")
    gated = content | {"gates": {"smoke": {"expect": "Rome"}, "throughput": None}}
    other = parse_spec(gated | {"serving": content["serving"] | {"args": ["--label", "other"]}})
    assert lab.deliver(other).code == 4
    assert "'Rome' is not in" in lab.says("history", NAME)
    told = "the spec's gates are not those that what serves has passed"
    assert told not in lab.says("plan", lab.written(spec))
    assert told in lab.says("plan", lab.written(parse_spec(gated)))
    assert lab.deliver(parse_spec(gated)).said["result"] == "unchanged"


def test_the_same_request_takes_over_from_a_run_that_still_lives(lab: Lab) -> None:
    spec = DeliverySpec.model_validate(
        lab.untested().model_dump(mode="json") | {"serving": {"args": ["--start-delay", "5000"]}}
    )
    second: list[Result] = []

    def start_again(_: int) -> None:
        while lab.host.get(NAME, Ref(RECORD, "record")) is None or not engines(lab):
            pass
        second.append(lab.deliver(spec, request="same"))

    first = lab.deliver(spec, request="same", meanwhile=start_again)
    assert first.code == 1, first.said
    assert f"the lease of {NAME} was lost" in first.said["trouble"]
    assert second[0].code == 0, second[0].said
    assert len(list((lab.host.folder(NAME) / "logs").glob("*-[0-9].log"))) == 1
    lab.converged(second[0].said["release"])


def test_a_dead_engine_comes_back_and_the_run_says_so(lab: Lab) -> None:
    spec = lab.untested()
    release = lab.deliver(spec).said["release"]
    os.kill(engines(lab)[release], signal.SIGKILL)
    assert lab.deliver(spec).said["result"] == "healed"
    lab.converged(release)
    assert lab.deliver(spec).said["result"] == "unchanged"


def test_a_record_of_a_newer_version_is_named_and_left_alone(lab: Lab) -> None:
    spec = lab.untested()
    lab.deliver(spec)
    (path,) = lab.host.home.glob(f"deliveries/{NAME}/objects/Record/*.json")
    newer = path.read_text().replace('"record_version": 2', '"record_version": 3')
    path.write_text(newer)
    again = lab.deliver(spec)
    assert again.code == 1
    assert "the delivery's record cannot be read" in json.dumps(again.said)
    assert path.read_text() == newer


def test_a_figure_that_is_refused_is_told_from_a_bound_that_nobody_keeps(lab: Lab) -> None:
    assert lab.deliver(lab.spec()).code == 0
    slow = lab.deliver(lab.spec("--ttft", "60", slo={"error_rate_max": 0, "ttft_p50_max": "40ms"}))
    assert slow.code == 4
    assert "keeps to ttft_p50_max: it is the release" in slow.said["trouble"]
    assert lab.record.held is not None
    strict = lab.deliver(lab.spec("--ttft", "60", slo={"error_rate_max": 0, "ttft_p50_max": "1ms"}))
    assert strict.code == 4
    assert "breaks it too, as when it was promoted" in strict.said["trouble"]
    assert "[gate.bound]" in strict.said["trouble"]


def test_what_of_a_refused_release_did_it_is_found_in_the_dark(lab: Lab) -> None:
    from model_delivery.flows.bisect import bisect

    lab.model = shutil.copytree(lab.model, lab.home.parent / "copy")
    serving = lab.deliver(lab.spec()).said["release"]
    (lab.model / "generation_config.json").write_text('{"temperature": 0.5}')
    others = ("--tokens", "12", "--max-model-len", "1024", "--role-early", "1")
    refused = lab.spec("--ttft", "60", *others, slo={"error_rate_max": 0, "ttft_p50_max": "40ms"})
    nothing = lab.run(lambda: bisect.fn(refused))
    assert nothing.code == 3
    assert "was not refused" in nothing.said["trouble"]
    assert lab.deliver(refused).code == 4
    held = lab.record.held
    found = lab.run(lambda: bisect.fn(refused))
    assert found.code == 0, found.said
    assert found.said["result"].startswith("the refusal came with --ttft: 2 → ")
    tried = [ended for ended in lab.record.ended if ended.outcome == "tried"]
    assert 1 <= len(tried) <= 3
    assert lab.record.held == held is not None
    lab.converged(serving)


def compared(lab: Lab) -> DeliverySpec:
    content = lab.spec().model_dump(mode="json")
    content["gates"]["throughput"] |= {"repeats": 2, "max_regression": 1000}
    return parse_spec(content)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (
            lambda text: text.replace('"report_version": 1', '"report_version": 99'),
            "report_version is 99, this version",
        ),
        (lambda _: None, "No such file or directory"),
    ],
    ids=["another version's", "gone"],
)
def test_a_gate_says_that_the_report_of_what_serves_cannot_be_compared_with(
    lab: Lab, spoil: Callable[[str], str | None], why: str
) -> None:
    lab.deliver(compared(lab))
    (first,) = lab.record.ended
    report = Path(str(first.report)).with_name("report.json")
    if (spoilt := spoil(report.read_text())) is None:
        report.unlink()
    else:
        assert spoilt != report.read_text()
        report.write_text(spoilt)
    second = lab.run(lambda: heard(compared(lab)))
    told = f"not compared with the release before: the report of {first.release} cannot be read: {why}"
    assert any(told in line for line in second.said["lines"]), second.said
    reasons = json.loads(Path(str(lab.record.ended[-1].report)).with_name("report.json").read_text())["reasons"]
    assert [reason["passed"] for reason in reasons if reason["text"].startswith(told)] == [True]


def heard(spec: DeliverySpec) -> dict[str, Any]:
    """What it came to, and its lines of progress."""
    from model_delivery.flows.deliver import deliver

    lines = list[str]()
    with sink(lambda news: lines.append(news.line())):
        return {"came": deliver.fn(spec), "lines": lines}
