"""A release that a person has to approve: on the run's page, or by `deliver promote`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.flow_runs import resume_flow_run

from model_delivery.places.host.place import Host
from model_delivery.run.lease import held
from model_delivery.verbs.status import status
from tests.flows.test_operations import NAME, Lab, lab  # noqa: F401 - a fixture
from tests.parts import prefect_server as parts
from tests.parts.cluster.waiting import until
from tests.parts.ports import free_port
from tests.parts.tiny_model import tiny_model
from tests.unit.test_cli import deliver, spec

MANUAL = {"approval": "manual"}


def suspended(lab: Lab, **more: Any) -> FlowRun:  # noqa: F811
    run = lab.begin(lab.spec("300ms", **MANUAL, **more))

    def state() -> str:
        now = lab.client.read_flow_run(run.id).state
        return str(now.name) if now else ""

    until(lambda: state() in ("Suspended", "Failed", "Completed", "Crashed"), 120, "the run does not wait for a person")
    assert state() == "Suspended"
    return run


def answer(lab: Lab, run: FlowRun, **form: str) -> FlowRun:  # noqa: F811
    with parts.settings_of(lab.server):
        resume_flow_run(run.id, run_input=form)
    return parts.wait_for(lab.client, run)


def test_a_person_approves_on_the_page_and_nothing_is_held_meanwhile(lab: Lab) -> None:  # noqa: F811
    lab.ended(lab.spec())
    serving = lab.record.serving
    run = suspended(lab)
    waiting = lab.record
    assert waiting.candidate is not None
    assert waiting.candidate.report is not None
    assert waiting.serving == serving
    assert not held(lab.place, NAME)
    page = str(parts.artifacts_of(lab.client, run)[f"{NAME}-outcome"].data)
    for told in (waiting.candidate.release, f"{serving} serves", f"`deliver promote {NAME}`", waiting.candidate.report):
        assert told in page
    assert "go back" not in page
    written = Path(waiting.candidate.report).read_bytes()
    ended = answer(lab, run, decision="promote", by="ana", reason="looks good")
    assert ended.state is not None
    assert ended.state.name == "Completed", ended.state
    last = lab.record.ended[-1]
    assert (last.outcome, last.why()) == ("promoted", "approved by ana: looks good")
    assert Path(str(last.report)).read_bytes() == written, "its load test was not run again"
    assert last.figures == waiting.candidate.figures
    assert lab.record.serving == waiting.candidate.release
    tasks = [task.name for task in lab.tasks(ended)]
    assert (tasks.count("plan"), tasks.count("promote")) == (2, 1), "once before and once after the question"


@pytest.mark.parametrize(
    ("said", "state", "told"),
    [([], "Completed", "promoted (release {tried})"), (["--refuse"], "Failed", "gate.not-approved")],
)
def test_an_answer_in_a_terminal_ends_the_run_that_waits(lab: Lab, said: list[str], state: str, told: str) -> None:  # noqa: F811
    lab.ended(lab.spec())
    run = suspended(lab)
    tried = lab.record.candidate
    assert tried is not None
    answers = deliver(lab.home, "promote", NAME, "--by", "ana", *said, **lab.server.env)
    assert answers.returncode == 0, answers.stderr
    ended = parts.wait_for(lab.client, run)
    assert ended.state is not None
    assert (ended.state.name, told.format(tried=tried.release) in str(ended.state.message)) == (state, True), (
        ended.state
    )


def test_a_person_refuses_and_a_schedule_does_not_try_it_again(lab: Lab) -> None:  # noqa: F811
    lab.ended(lab.spec())
    serving = lab.record.serving
    run = suspended(lab)
    ended = answer(lab, run, decision="refuse", by="bo", reason="too slow")
    assert ended.state is not None
    assert ended.state.name == "Failed"
    assert "gate.not-approved" in str(parts.artifacts_of(lab.client, ended)[f"{NAME}-trouble"].data)
    record = lab.record
    assert (record.serving, record.candidate, record.ended[-1].outcome) == (serving, None, "not approved")
    assert "by bo: too slow" in record.ended[-1].message
    assert record.held is not None


@pytest.fixture
def waiting(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    def begin(more: str = "") -> tuple[Path, Path]:
        home, model = tmp_path / "home", tiny_model(tmp_path / "model")
        file = spec(tmp_path, model, free_port(), f"approval: manual\n{more}")
        up = deliver(home, "up", str(file))
        assert (up.returncode, up.stderr.count("error")) == (0, 0), up.stderr
        assert "small: awaiting approval" in up.stdout
        return home, file

    return begin


def test_without_a_server_promote_answers(waiting: Callable[..., tuple[Path, Path]]) -> None:
    home, file = waiting()
    try:
        assert re.search(
            r"waits until \S+ \S+ for an approval: `deliver promote small`", deliver(home, "status", "small").stdout
        )
        promoted = deliver(home, "promote", "small", "--by", "ana", "--reason", "looks good")
        assert promoted.returncode == 0, promoted.stderr
        assert "small: promoted" in promoted.stdout
        (ended,) = json.loads(deliver(home, "history", "small", "--json").stdout)
        assert ended["approval"] | {"until": 0} == {"until": 0, "promote": True, "by": "ana", "reason": "looks good"}
        again = deliver(home, "promote", "small")
        assert again.returncode == 3
        assert "nothing waits for an approval" in again.stderr
        assert "unchanged" in deliver(home, "up", str(file)).stdout
    finally:
        deliver(home, "down", "small")


def test_a_no_takes_the_release_away(waiting: Callable[..., tuple[Path, Path]]) -> None:
    home, _ = waiting()
    refused = deliver(home, "promote", "small", "--refuse", "--by", "bo", "--reason", "not today")
    assert refused.returncode == 0, refused.stderr
    assert "small: refused" in refused.stdout
    assert status(Host(home), "small").running == ()
    assert "by bo: not today" in deliver(home, "history", "small").stdout


def test_nobody_answers_and_that_is_a_no(waiting: Callable[..., tuple[Path, Path]]) -> None:
    home, _ = waiting("approval_timeout: 1s\n")
    late = deliver(home, "promote", "small")
    assert late.returncode == 3, "a second is over before the command has begun"
    (ended,) = json.loads(deliver(home, "history", "small", "--json").stdout)
    assert (ended["outcome"], ended["message"]) == ("not approved", "nobody approved it in time")
    assert status(Host(home), "small").running == ()


def test_recreate_is_refused_where_a_person_is_asked(tmp_path: Path) -> None:
    file = spec(tmp_path, tmp_path, free_port(), "approval: manual\n")
    file.write_text(file.read_text().replace("rollout: {", "rollout: {strategy: recreate, "))
    refused = deliver(tmp_path / "home", "plan", str(file))
    assert refused.returncode == 2
    assert "approval: nothing would serve while a person is asked" in refused.stderr
