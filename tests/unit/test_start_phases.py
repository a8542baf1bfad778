"""The phases of a start, by what an engine's log, its pod and its events say: none is
invented, and a slow pull is told from a slow load.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model_delivery.base import sink
from model_delivery.diagnosis.engine_log import diagnose, last_line
from model_delivery.diagnosis.pod_caches import CONTAINER
from model_delivery.diagnosis.pod_starts import start
from model_delivery.diagnosis.starting import passed, starting
from model_delivery.run.starting import words
from model_delivery.run.wait import Timeline
from model_delivery.values import InProgress, Phase, Start
from tests.unit.test_pods import event, judged, pod

HERE = Path(__file__).parent
REAL = (HERE / "starts" / "compiled.txt").read_text()  # of a start on a GPU that ended later
BEGAN = 1767225600.0  # 2026-01-01T00:00:00Z
BEFORE = {Phase.PROCESS: 10.0, Phase.WEIGHTS: 40.0, Phase.HEALTHY: 100.0}


def at(seconds: int) -> str:
    return f"2026-01-01T00:{seconds // 60:02}:{seconds % 60:02}Z"


def stamped(log: str, first: int = 0) -> str:
    """As a container's log gives it, a second a line."""
    return "\n".join(f"{at(first + n)[:-1]}.123456789Z {line}" for n, line in enumerate(log.split("\n")))


def test_a_real_log_tells_the_phases_that_it_is_past_and_no_other() -> None:
    assert passed(REAL) == {Phase.WEIGHTS: None, Phase.COMPILED: None}
    told = passed(stamped(REAL))
    lines = REAL.splitlines()
    for phase, words_of_it in ((Phase.WEIGHTS, "Model loading took"), (Phase.COMPILED, "torch.compile took")):
        number = next(n for n, line in enumerate(lines) if words_of_it in line)
        assert told[phase] == pytest.approx(BEGAN + number + 0.123456)


@pytest.mark.parametrize(
    "line",
    [
        "Graph capturing finished in 2 secs, took 0.5 GiB",
        "(APIServer pid=1) Graph capturing finished in 2 secs",
        "(APIServer pid=1) INFO 11-27 17:31:00 [logger.py:40] Received request cmpl-1: prompt: 'Graph capturing finished'",
        "(APIServer pid=1) INFO 11-27 17:31:00 [logger.py:40] Received request: init engine (profile) took 3 s",
        '(APIServer pid=1) INFO:     127.0.0.1:1 - "GET /Model loading took HTTP/1.1" 404 Not Found',
        "(APIServer pid=1) INFO 11-27 17:31:00 [logger.py:40] prompt: Dynamo bytecode transform time: 1 s",
    ],
)
def test_what_a_user_has_written_is_no_phase_and_no_progress(line: str) -> None:
    assert passed(line) == {}
    assert starting(line).why == "the engine is starting"


@pytest.mark.parametrize("file", sorted(path.name for path in (HERE / "engine-logs").iterdir()))
def test_a_failure_is_told_alike_where_each_line_has_its_moment(file: str) -> None:
    log = (HERE / "engine-logs" / file).read_text().rstrip("\n")
    assert diagnose(stamped(log), 1) == diagnose(log, 1)
    assert last_line(stamped(log)) == last_line(log)


def waiting(events: tuple[dict[str, Any], ...]) -> tuple[str, Start | None]:
    made = aged(pod(waiting=("ContainerCreating", ""), conditions=(since("PodScheduled", 2),)))
    return why(judged(made, events=events)), start([made], events)


def why(state: object) -> str:
    assert isinstance(state, InProgress)
    return state.why


def aged(made: dict[str, Any]) -> dict[str, Any]:
    return {**made, "metadata": {**made["metadata"], "creationTimestamp": at(0)}}


def since(kind: str, seconds: int) -> dict[str, Any]:
    return {"type": kind, "status": "True", "lastTransitionTime": at(seconds)}


def pulls(reason: str, message: str, seconds: int, container: str = "engine") -> dict[str, Any]:
    made = {**event(reason, message), "type": "Normal", "firstTimestamp": at(seconds), "lastTimestamp": at(seconds)}
    return {**made, "involvedObject": {**made["involvedObject"], "fieldPath": f"spec.containers{{{container}}}"}}


PULLING = pulls("Pulling", 'Pulling image "registry.example/engine:1"', 3)
PULLED = pulls("Pulled", 'Successfully pulled image "registry.example/engine:1" in 4m57s', 300)


def running(log: str, started: int, *conditions: dict[str, Any]) -> dict[str, Any]:
    made = aged(pod(log=log, conditions=(since("PodScheduled", 2), *conditions)))
    made["status"]["containerStatuses"][0]["state"] = {"running": {"startedAt": at(started)}}
    return made


def test_a_slow_pull_is_told_from_a_slow_load() -> None:
    said, begun = waiting((PULLING,))
    assert said == 'Pulling: Pulling image "registry.example/engine:1"'
    assert begun == Start(BEGAN, {Phase.SCHEDULED: BEGAN + 2})
    other = pulls("Pulled", "Container image is already present on machine", 4, "proxy")
    assert waiting((PULLING, other))[1] == begun, "another container's image is not the engine's"
    loads = "(EngineCore pid=3) INFO 11-23 15:40:11 [m.py:1] Starting to load model m..."
    bar = "Loading safetensors checkpoint shards:  50% Completed | 3/6 [00:00<00:00,  7.53it/s]"
    slow = running(f"{loads}\n{bar}", 301)
    assert why(judged(slow, events=(PULLING, PULLED))) == "the engine is starting: the weights are loaded, file 3 of 6"
    assert seconds(slow, PULLING, PULLED) == {Phase.SCHEDULED: 2, Phase.PULLED: 300, Phase.PROCESS: 301}


def seconds(made: dict[str, Any], *events: dict[str, Any]) -> dict[Phase, float]:
    timeline = Timeline()
    timeline.note(start([made], events), BEGAN + 1000)
    return timeline.seconds


def test_a_pods_start_is_timed_by_what_the_cluster_says_though_nobody_looked() -> None:
    well = running(stamped(REAL, 310), 301, since("Ready", 400))
    told = seconds(well, PULLED)
    assert [*told] == [phase for phase in Phase if phase not in (Phase.WARM, Phase.ANSWERED)]
    assert [*told.values()] == sorted(told.values())
    assert (told[Phase.SCHEDULED], told[Phase.HEALTHY]) == (2, 400)
    assert words(told).startswith("scheduled 2.0 s, image pulled 300.0 s, process up 301.0 s, weights 3")


def test_a_container_that_is_started_anew_has_come_by_nothing_yet() -> None:
    timeline = Timeline(BEFORE)
    timeline.note(start([running(stamped(REAL, 310), 301)], (PULLED,)), BEGAN + 400)
    assert Phase.COMPILED in timeline.seconds
    timeline.note(start([running("", 450)], (PULLED,)), BEGAN + 451)
    assert timeline.seconds == {Phase.SCHEDULED: 2, Phase.PULLED: 300, Phase.PROCESS: 450}
    timeline.note(start([running("", 450, since("Ready", 500))], (PULLED,)), BEGAN + 501)
    assert timeline.seconds[Phase.HEALTHY] == 500


def test_why_a_pods_engine_starts_without_its_cache_is_told_once() -> None:
    def made(word: str, name: str = CONTAINER) -> dict[str, Any]:
        pod = running("", 5)
        ended = {"terminated": {"exitCode": 0, "message": f"{word}\n"}}
        pod["status"]["initContainerStatuses"] = [{"name": name, "state": ended}]
        return pod

    told, timeline = list[str](), Timeline()
    with sink(lambda news: told.append(news.line())):
        for _ in range(2):
            timeline.note(start([made("foreign"), made("new")], ()), BEGAN + 10)
    [line] = told
    assert "the engine starts without its cache: its folder is another user's [engine.cache-unusable]" in line
    for pods, kept in (([made("foreign"), made("new")], False), ([made("kept"), made("new")], True)):
        timeline.note(start(pods, ()), BEGAN + 10)
        assert timeline.kept is kept
    for pods in ([made("unwritable", "mine")], [made("[x.y] rm -rf")], [running("", 5)]):
        found = start(pods, ())
        assert found is not None
        assert (found.kept, found.findings) == (False, ())


def test_several_engines_are_as_far_as_the_slowest_and_a_pod_that_ends_does_not_count() -> None:
    first, second = running("", 30, since("Ready", 40)), running("", 50)
    assert (one := start([first, second], ())) is not None
    assert one.reached == {Phase.SCHEDULED: BEGAN + 2, Phase.PROCESS: BEGAN + 50}
    second["metadata"]["deletionTimestamp"] = at(60)
    assert (alone := start([first, second], ())) is not None
    assert alone.reached[Phase.HEALTHY] == BEGAN + 40


def test_without_events_a_pull_has_no_time_and_without_pods_there_is_no_start() -> None:
    assert Phase.PULLED not in seconds(running("", 301))
    assert start([], ()) is None


def test_a_phase_is_timed_when_it_is_first_seen_and_never_when_it_was_over_before() -> None:
    timeline = Timeline()
    timeline.note(Start(1000, {Phase.PROCESS: 1000, Phase.WEIGHTS: None}), 1050)
    timeline.note(Start(1000, {Phase.PROCESS: 1000, Phase.WEIGHTS: None, Phase.WARM: None}), 1060)
    timeline.note(Start(1000, {Phase.PROCESS: 1000, Phase.WARM: None, Phase.HEALTHY: None}), 1070)
    assert timeline.seconds == {Phase.PROCESS: 0, Phase.WARM: 60, Phase.HEALTHY: 70}
    timeline.note(Start(1100, {Phase.PROCESS: 1100}), 1101)
    assert timeline.seconds == {Phase.PROCESS: 0}, "it was started again"


def test_clocks_that_differ_turn_no_time_round() -> None:
    timeline = Timeline()
    timeline.note(Start(1000, {Phase.SCHEDULED: 990, Phase.PULLED: 5000}), 1020)
    timeline.note(Start(1000, {Phase.PROCESS: 1010}), 1030)
    assert timeline.seconds == {Phase.SCHEDULED: 0, Phase.PULLED: 20, Phase.PROCESS: 20}
    late = Timeline()
    late.note(Start(1000, {Phase.PROCESS: 1010}), 1020)
    late.note(Start(1000, {Phase.PULLED: 1011, Phase.PROCESS: 1010}), 1030)
    assert late.seconds == {Phase.PULLED: 10, Phase.PROCESS: 10}


def test_what_is_left_follows_the_start_before_from_the_phase_that_this_one_is_past() -> None:
    timeline = Timeline(BEFORE)
    assert timeline.left(1000) is None, "nothing of it is seen yet"
    timeline.note(Start(1000, {}), 1001)
    assert timeline.left(1001) == 99
    timeline.note(Start(1000, {Phase.PROCESS: 1070}), 1075)
    assert timeline.left(1080) == 80, "a slow pull does not make a load shorter"
    assert timeline.left(1200) is None, "nobody knows any more"
    assert Timeline({Phase.PROCESS: 1}).left(1000) is None
