"""What another request finds, and says, after a run that was killed."""

from __future__ import annotations

import os
import resource
import signal
from contextlib import suppress
from typing import Any, Literal

from model_delivery.base import Progress, Retryable, sink
from model_delivery.places.guarded import observed
from model_delivery.spec import DeliverySpec
from model_delivery.targets.process import ENGINE
from model_delivery.values import Ref
from model_delivery.verbs.status import down
from tests.crash.lab import NAME, Lab, Result
from tests.parts.timing_engine import engine_folder


def killed_with_its_engine_up(lab: Lab, spec: DeliverySpec, request: str | None = None) -> Result:
    """The run dies right after it has started its engine."""
    seen = lab.deliver(lab.untested())
    assert seen.code == 0, seen.said
    at = next(n for n, (when, _, ref) in enumerate(seen.events) if when == "after" and ref.startswith("Engine/"))
    done = lab.deliver(spec, kill_at=at, request=request)
    assert done.code is None
    assert lab.record.candidate is not None
    return done


def test_going_back_to_what_serves_after_a_crash_is_no_failure(lab: Lab) -> None:
    killed_with_its_engine_up(lab, lab.untested(), request="first")
    serving = lab.record.serving
    assert serving is not None
    back = lab.rollback(serving)
    assert (back.code, back.said.get("result")) == (0, "unchanged"), back.said
    lab.converged(serving)
    ended = lab.record.ended[-1]
    assert (ended.request, ended.outcome) == ("first", "rolled back"), (
        "what was replaced belongs to the request that asked for it"
    )


def test_a_delivery_that_replaces_a_killed_one_may_be_killed_and_run_again(lab: Lab) -> None:
    killed_with_its_engine_up(lab, lab.untested())
    whole, other = lab.record, lab.untested()
    assert whole.candidate is not None
    replacing = lab.deliver(other, request="second", kill_at=9)
    assert replacing.code is None
    assert [e.outcome for e in lab.record.ended] == ["promoted", "replaced"], (
        "the test kills it after it has ended the first one"
    )
    again = lab.deliver(other, request="second")
    assert again.code == 0, again.said
    lab.converged(again.said["release"])


def test_a_rollback_to_nowhere_leaves_a_killed_delivery_to_its_rerun(lab: Lab) -> None:
    spec = lab.untested()
    killed_with_its_engine_up(lab, spec)
    before = lab.record
    refused = lab.rollback("nowhere")
    assert refused.code == 3, refused.said
    assert lab.record == before
    assert lab.deliver(spec).code == 0


def test_a_rollback_after_down_serves_at_the_old_address(lab: Lab) -> None:
    goal = lab.deliver(lab.untested()).said["release"]
    down(lab.host, NAME)
    back = lab.rollback(None)
    assert back.code == 0, back.said
    assert back.said["url"] == f"http://127.0.0.1:{lab.port}"
    lab.converged(goal)


def test_a_rollback_forgets_nothing_that_the_spec_keeps(lab: Lab) -> None:
    for _ in range(5):
        assert lab.deliver(lab.untested(keep=5)).code == 0
    assert lab.rollback(None).code == 0
    assert len([ref for ref in lab.host.world(NAME).objects if ref.kind.name == "Release"]) == 5


def test_where_nothing_can_be_resolved_a_dead_release_comes_back_beside_a_candidate(lab: Lab) -> None:
    killed_with_its_engine_up(lab, lab.untested())
    serving = lab.record.serving
    assert serving is not None
    dead = lab.host.world(NAME).objects[Ref(ENGINE, serving)].status
    os.kill(dead["pid"], signal.SIGKILL)
    gone = lab.model.rename(lab.model.with_name("elsewhere"))
    try:
        assert lab.deliver(lab.untested()).code == 3
    finally:
        gone.rename(lab.model)
    now = lab.host.world(NAME).objects[Ref(ENGINE, serving)].status
    assert now["alive"]
    assert now["pid"] != dead["pid"]
    assert lab.record.candidate is not None


def test_a_canary_that_fails_while_it_soaks_is_withdrawn(lab: Lab) -> None:
    from model_delivery.flows.deliver import deliver

    serving = lab.deliver(lab.untested()).said["release"]
    spec = lab.untested(strategy="canary", steps=[50], soak="30s")

    def kill_it_once(news: Progress) -> None:
        candidate = lab.record.candidate
        if news.step == "watch" and candidate is not None:
            assert str(candidate.phase) == "canary-50"
            status = lab.host.world(NAME).objects[Ref(ENGINE, candidate.release)].status
            if status["alive"]:
                os.kill(status["pid"], signal.SIGKILL)

    def act() -> Any:
        with sink(kill_it_once):
            return deliver.fn(spec, None)

    refused = lab.run(act)
    assert refused.code == 4, refused.said
    assert "failed while it was watched" in refused.said["trouble"]
    lab.converged(serving)


def test_a_refused_attempt_is_remembered_no_longer_than_the_spec_says(lab: Lab) -> None:
    for _ in range(3):
        assert lab.deliver(lab.untested(history=2)).code == 0
        assert lab.deliver(lab.spec("--fail-start", history=2)).code == 1
        assert len(lab.record.ended) == 2 or lab.labels < 3


def test_a_full_disk_is_not_taken_for_another_run(lab: Lab) -> None:
    from model_delivery.flows.deliver import deliver

    serving = lab.deliver(lab.untested()).said["release"]
    spec = lab.untested()

    def act() -> Any:
        def observer(when: Literal["before", "after"], verb: str, ref: Ref) -> None:
            if (when, ref.kind.name) == ("before", "Record"):
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

        with observed(observer):
            return deliver.fn(spec, None)

    full = lab.run(act)
    assert full.code == 1, full.said
    assert "cannot be written: [Errno 27] File too large" in full.said["trouble"]
    assert "make room" in full.said["trouble"]
    assert lab.record.serving == serving
    assert lab.deliver(spec).code == 0


def test_what_stopped_a_fetch_is_not_told_again_once_it_is_gone(lab: Lab) -> None:
    from model_delivery.flows.deliver import deliver

    spec, seen = lab.untested(), list[str]()
    in_the_way = lab.home / "models" / "local"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("somebody's")

    def act() -> Any:
        def observer(when: Literal["before", "after"], verb: str, ref: Ref) -> None:
            seen.append(ref.kind.name)
            if "Step" in seen and (when, ref.kind.name) == ("before", "Record"):
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

        with observed(observer):
            return deliver.fn(spec, None)

    stopped = lab.run(act)
    assert stopped.code, stopped.said
    assert lab.record.candidate is not None, "the full disk keeps it from being withdrawn"
    in_the_way.unlink()
    again = lab.deliver(spec)
    assert again.code == 0, again.said


def test_an_engine_that_may_come_up_when_tried_again_is_started_again_by_the_retry(lab: Lab) -> None:
    from model_delivery.tasks import delivering as do
    from model_delivery.tasks.running import delivering

    folder = engine_folder(lab.home.parent / "moody")
    toml = (folder / "engine.toml").read_text()
    moody = 'command = ["/bin/sh", "-c", "[ -e {folder}/tried ] || { touch {folder}/tried; echo EngineDeadError >&2; exit 1; }; exec \\"$@\\"", "sh",'
    (folder / "engine.toml").write_text(toml.replace("command = [", moody))
    lab.engine = folder
    spec = lab.untested()

    def act() -> Any:
        with delivering(spec, None) as run:
            do.plan(spec, do.resolve(spec), scheduled=False)
            do.storage()
            do.fetch()
            way = run.route()
            stage = way.stages[0]
            do.release(stage, way)
            with suppress(Retryable):
                return {"endpoint": do.ready(stage)}
            return {"endpoint": do.ready(stage)}

    tried = lab.run(act)
    assert tried.code == 0, tried.said
    assert tried.said["endpoint"].startswith("http://127.0.0.1:")
    assert lab.deliver(spec).code == 0


def test_a_refused_recreate_brings_the_old_release_back_where_only_one_fits(lab: Lab) -> None:
    whole = len(os.sched_getaffinity(0))
    serving = lab.deliver(lab.untested(cpus=whole)).said["release"]
    refused = lab.deliver(lab.spec(cpus=whole, when_full="recreate", slo={"ttft_p95_max": "1ms"}))
    assert refused.code == 4, refused.said
    lab.converged(serving)
