"""A host's state folder that an older version left behind: the new one says the same of
it, finishes what was killed half way, and restarts nothing that stands.

Each case is put back with every process dead, as after a reboot.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from model_delivery.base import Trouble
from model_delivery.flows.deliver import deliver
from model_delivery.flows.rollback import rollback
from model_delivery.measure.report import parse
from model_delivery.run import protocol
from model_delivery.run.session import Session
from model_delivery.spec import DeliverySpec, load_spec, parse_spec
from model_delivery.steps.run import find, read
from model_delivery.values import Stage, Strategy
from tests.compatibility import restore
from tests.compatibility.asking import known, says
from tests.crash.lab import NAME, Lab
from tests.parts.hubs.huggingface import running_hub
from tests.parts.tiny_model import tiny_model

HOST = restore.cases("host")
PLANNED = ("name", "release", "result", "commit", "files", "bytes", "fetched")


@dataclass
class Case:
    """``facts``: what the old code said of the state; ``rerun``: what it made of it."""

    title: str
    lab: Lab
    spec: DeliverySpec
    file: Path
    facts: dict[str, Any]
    rerun: dict[str, Any]

    @property
    def asked(self) -> DeliverySpec:
        """Where a gate refused a figure, an answer is refused: on a busy machine a load
        test of 0.3 s cannot be judged, or asks nothing.
        """
        if self.rerun["said"].get("exit_code") != 4:
            return self.spec
        content = self.spec.model_dump(mode="json")
        content["gates"]["smoke"]["expect"] = "no model says this"
        return parse_spec(content)

    def run(self) -> tuple[dict[str, Any], list[str]]:
        """As ``rerun`` says, in a process of its own: what it came to, and the stages
        that it passed.
        """
        asked = self.rerun["asked"][0]
        return self.forked(lambda: rollback.fn(NAME) if asked == "rollback" else deliver.fn(self.asked))

    def forked(self, act: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
        def watched() -> dict[str, Any]:
            passed: list[str] = []
            entered = protocol.enter

            def enter(session: Session, stage: Stage, strategy: Strategy) -> None:
                passed.append(str(stage.phase))
                entered(session, stage, strategy)

            protocol.enter = enter
            try:
                came_to = act()
            except Trouble as trouble:
                came_to = {"exit_code": trouble.exit_code, "stderr": trouble.text}
            return {"said": came_to, "passed": passed}

        done = self.lab.run(watched)
        assert done.code == 0, done.said
        return done.said["said"], done.said["passed"]

    def pids(self) -> set[int]:
        """Of everything that runs for it."""
        world = self.lab.host.world(NAME)
        return {seen.status["pid"] for seen in world.objects.values() if seen.status.get("alive")}

    def stop(self) -> None:
        started = []
        for pid in self.pids():
            with suppress(psutil.NoSuchProcess):
                started.append(psutil.Process(pid))
                started[-1].kill()
        psutil.wait_procs(started, timeout=10)


@pytest.fixture(scope="module")
def fixed() -> tuple[Path, Path]:
    return restore.engine_and_model()


@pytest.fixture(params=HOST)
def case(
    request: pytest.FixtureRequest, tmp_path: Path, fixed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Case]:
    title, (engine, model), home = request.param, fixed, tmp_path / "home"
    monkeypatch.setenv("MODEL_DELIVERY_HOME", str(home))
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    facts = restore.host(title, home)
    file = tmp_path / "spec.yaml"
    file.write_bytes(restore.kept()[f"host/{title}/spec.yaml"])
    port = facts["fixed"]["port"]
    lab = Lab(home, model, engine, port)
    made = Case(title, lab, load_spec(file), file, facts, restore.said(f"host/{title}/rerun.json", home))
    hubs = running_hub(tiny_model(tmp_path / "big", 65536)) if "hub" in facts else nullcontext()
    with (engine.parent / f"port-{port}").open("w") as alone, hubs as hub:
        fcntl.flock(alone, fcntl.LOCK_EX)  # whoever plays the same case beside has the same port
        if hub is not None:
            monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield made
        made.stop()


def test_the_new_code_says_what_the_old_one_said(case: Case) -> None:
    dead = case.facts["dead"]
    for verb in ("status", "history", "connect"):
        assert known(says(verb, NAME), dead[verb]) == dead[verb], verb
    assert known(says("list"), dead["list"]) == dead["list"]


OLD_HOME = b"/tmp/model-delivery-old/home"
OUTPUTS = [name for name in restore.kept() if name.endswith("output.jsonl")]


def test_what_its_steps_wrote_is_read() -> None:
    """A step that ended under the old code, and whose result nobody had read yet."""
    steps = set()
    for name in OUTPUTS:
        step = name.split("/Step-")[1].split("-")[0]
        lines = restore.kept()[name].replace(b"@HOME@", OLD_HOME).splitlines()  # it is part of the result's sum
        if any(line.startswith(b'{"result"') for line in lines):
            find(step).output.model_validate_json(read(step, lines))
            steps.add(step)
    assert steps == {"fetch", "smoke", "load"}
    found = [data for name, data in restore.kept().items() if name.endswith("/report.json")]
    assert found
    assert all(parse(data).throughput for data in found), "a later release is compared with it"


def test_the_next_run_does_what_the_old_code_would_have_done(case: Case) -> None:
    rerun, ahead = case.rerun, says("status", NAME)["stages"]
    planned = says("plan", str(case.file))
    as_it_planned(case, planned)
    if "scheduled" in rerun:
        held, _ = case.forked(lambda: deliver.fn(case.spec, scheduled=True))
        assert (held["result"], held["release"]) == (rerun["scheduled"]["result"], rerun["scheduled"]["release"])

    done, passed = case.run()
    refused = "exit_code" in rerun["said"]
    for name in ("exit_code",) if refused else ("name", "result", "release", "url", "report"):
        assert done.get(name) == rerun["said"][name], (name, done)
    meant = planned["stages"] if rerun["asked"][0] == "up" else ahead
    assert passed == (meant[: len(passed)] if refused else meant)
    assert ahead in ([], passed), "what status says of a candidate"
    assert not ahead or case.facts["releases"]["phase"] in ("fetch", ahead[0]), "it goes on where it was"
    ends_as_it_did(case)
    if refused:
        return

    before = case.pids()
    again, _ = case.run()
    assert again.get("result") == rerun["again"].get("result"), again
    assert again.get("exit_code") == rerun["again"].get("exit_code"), again
    assert before
    assert case.pids() == before, "nothing is restarted"


def as_it_planned(case: Case, planned: dict[str, Any]) -> None:
    """Stages and changes only where no candidate is under way: there the old plan was
    wrong. It also said "goes on" of one whose end was written, where its run began anew,
    and its run would have delivered again what serves, had another candidate been there.
    What its run would have healed it called unchanged.
    """
    old, record = case.facts["dead"]["plan"]["spec.yaml"], case.lab.record
    names = PLANNED if record.candidate else tuple(old)
    if record.candidate and record.candidate.ending:
        old = {**old, "result": "new release"}
    if record.candidate and old["release"] == record.serving:
        old = {**old, "result": "unchanged"}
    if not record.candidate and old["result"] == "unchanged" and old["changes"]:
        old = {**old, "result": "healed"}
    assert {name: planned[name] for name in names} == {name: old[name] for name in names}


def ends_as_it_did(case: Case) -> None:
    """In every field but those of a run's own: its pids, times and requests. What a gate
    refuses is held since.
    """
    status, then = says("status", NAME), case.rerun["status"]
    if case.rerun["said"].get("exit_code") == 4:
        assert status.pop("held"), "a schedule does not try it again"
        then = {name: value for name, value in then.items() if name != "held"}
    own = ("running", "standby_until")
    assert {name: status[name] for name in then if name not in own} == {
        name: value for name, value in then.items() if name not in own
    }
    assert status["stages"] == []
    assert shown(status["running"], "release", "share", "state", "verified") == shown(
        then["running"], "release", "share", "state", "verified"
    )
    now = says("history", NAME)
    assert shown(now, "release", "attempt", "outcome") == shown(case.rerun["history"], "release", "attempt", "outcome")
    if status["serving"]:
        assert case.lab.answers()["data"][0]["id"] == NAME


def shown(rows: list[dict[str, Any]], *columns: str) -> list[tuple[Any, ...]]:
    return [tuple(row[column] for column in columns) for row in rows]
