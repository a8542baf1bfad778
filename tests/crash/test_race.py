"""The loaders of an engine race: in the dark, each from a cold disk, and the one that
starts soonest with equal answers is what every later start is made with.
"""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from model_delivery.run import racing
from model_delivery.spec import DeliverySpec, parse_spec
from model_delivery.targets.process import ENGINE
from model_delivery.values import Ref
from tests.crash.lab import NAME, Lab
from tests.crash.test_crash_matrix import moments
from tests.parts.sampling import sampled
from tests.unit.test_cli import deliver

LOAD = (
    "--weights-ms",
    "4000",
)  # of the engine's own loader; of quick it is 300 ms, of other, whose answers differ, 100
QUICK = ["--weights-ms", "300"]


def race(lab: Lab, *args: str, **more: Any) -> DeliverySpec:
    content = lab.untested(*LOAD, *args, **more).model_dump(mode="json")
    content["serving"]["loader"] = "race"
    return parse_spec(content)


def engine(lab: Lab, release: str | None = None) -> psutil.Process:
    """Of ``release``, default what serves."""
    seen = lab.host.get(NAME, Ref(ENGINE, release or str(lab.record.serving)))
    assert seen is not None
    return psutil.Process(seen.status["pid"])


def loaded(lab: Lab) -> list[str]:
    """By which arguments, the last ones, what serves was told to load."""
    return engine(lab).cmdline()[-2:]


def starts(lab: Lab) -> int:
    return len(list(lab.host.logs(NAME).glob(f"{lab.record.serving}-*.log")))


def test_the_fastest_of_equal_answers_serves_is_locked_and_makes_every_later_start(lab: Lab, tmp_path: Path) -> None:
    spec = race(lab)
    file = lab.written(spec)
    assert "in the dark its loaders race: default, quick, other, broken" in lab.says("plan", file)
    assert "promoted" in lab.says("up", file)
    release = str(lab.record.serving)
    assert loaded(lab) == QUICK
    lab.converged(release)
    laps = {lap.loader: lap.out for lap in lab.record.ended[-1].race.laps}  # type: ignore[union-attr]
    assert laps.keys() == {"default", "quick", "other", "broken"}
    assert not laps["default"] + laps["quick"]
    assert "other log-probabilities" in laps["other"]
    assert "no memory is left for the KV cache" in laps["broken"]
    assert "its loaders: default " in lab.says("status", NAME)
    assert f"{release}-1 raced: default " in lab.says("history", NAME, "--starts")
    locked = yaml.safe_load(lab.says("lock", NAME))
    assert (locked["serving"]["loader"], locked["lock"]["loader"]) == ("race", "quick")
    made = starts(lab)
    assert "its loaders race" not in lab.says("plan", file)
    assert "unchanged" in lab.says("up", file)
    (tmp_path / "lock.yaml").write_text(yaml.safe_dump(locked))
    assert "unchanged" in lab.says("up", str(tmp_path / "lock.yaml"))
    assert starts(lab) == made
    engine(lab).kill()
    assert "healed" in lab.says("up", file)
    assert loaded(lab) == QUICK
    assert lab.deliver(lab.untested()).code == 0
    assert lab.record.serving != release
    lab.says("rollback", NAME)
    assert lab.record.serving == release
    assert loaded(lab) == QUICK
    assert starts(lab) == made + 2
    lab.says("down", NAME)
    elsewhere = tmp_path / "elsewhere"
    try:
        there = deliver(elsewhere, "up", str(tmp_path / "lock.yaml"))
        assert there.returncode == 0, there.stderr
        assert json.loads(deliver(elsewhere, "status", NAME, "--json").stdout)["serving"] == release
        logs = list((elsewhere / "deliveries" / NAME / "logs").glob(f"{release}-*.log"))
        assert len(logs) == 1, "it was started more than once"
    finally:
        assert deliver(elsewhere, "down", NAME).returncode == 0
    locked["lock"]["loader"] = "broken"
    (tmp_path / "lock.yaml").write_text(yaml.safe_dump(locked))
    third = tmp_path / "third"
    try:
        there = deliver(third, "up", str(tmp_path / "lock.yaml"))
        assert (there.returncode, "[engine.loader-dropped]" in there.stderr) == (0, True), there.stderr
        assert yaml.safe_load(deliver(third, "lock", NAME).stdout)["lock"]["loader"] == "default"
    finally:
        assert deliver(third, "down", NAME).returncode == 0


def test_what_serves_answers_throughout_a_race_and_is_not_started_anew(lab: Lab) -> None:
    assert lab.deliver(lab.untested()).code == 0
    old = str(lab.record.serving)
    was = engine(lab)
    over, failed, answered = threading.Event(), list[str](), list[str]()

    def client() -> None:
        while not over.wait(0.02):
            try:
                answered.append(lab.token())
            except (httpx.HTTPError, AssertionError) as error:
                failed.append(repr(error))

    asking = threading.Thread(target=client)
    asking.start()
    try:
        told = lab.says("up", lab.written(race(lab, standby="30m")))
    finally:
        over.set()
        asking.join()
    assert "promoted" in told
    assert not failed
    assert answered
    assert loaded(lab) == QUICK
    assert engine(lab, old) == was, "it was started anew"


def test_a_race_that_is_killed_at_any_effect_is_finished_by_the_next_run(lab: Lab) -> None:
    assert lab.deliver(lab.untested()).code == 0
    whole = lab.deliver(race(lab))
    assert whole.code == 0, whole.said
    for at in sampled(moments(whole.events)):
        spec = race(lab)
        assert lab.deliver(spec, kill_at=at).code is None, f"no effect number {at}"
        again = lab.deliver(spec)
        assert again.code == 0, (whole.events[at], again.said)
        lab.converged(lab.record.serving)
        assert loaded(lab) == QUICK, whole.events[at]


def test_a_loader_that_is_late_is_out_and_the_rest_goes_on(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(racing, "LATE_SECONDS", 0.5)
    loaders = 'hangs = { args = ["--weights-ms", "600000"] }\nbrings = { args = ["--weights-ms", "1200"] }\n'
    lab.engine = with_loaders(lab, tmp_path, loaders)
    content = lab.untested("--weights-ms", "3500").model_dump(mode="json")
    content["serving"]["loader"] = "race"
    done = lab.deliver(parse_spec(content))
    assert done.code == 0, done.said
    outs = {lap.loader: lap.out for lap in lab.record.ended[-1].race.laps}  # type: ignore[union-attr]
    assert "is not ready after" in outs["hangs"]
    assert loaded(lab) == ["--weights-ms", "1200"]


def with_loaders(lab: Lab, tmp_path: Path, loaders: str) -> Path:
    folder = tmp_path / "engine"
    shutil.copytree(lab.engine, folder)
    text = (folder / "engine.toml").read_text()
    (folder / "engine.toml").write_text(text.partition("[loaders]")[0] + ("[loaders]\n" + loaders if loaders else ""))
    return folder


def test_an_engine_without_other_loaders_and_a_cluster_refuse_a_race(lab: Lab, tmp_path: Path) -> None:
    lab.engine = with_loaders(lab, tmp_path, "")
    refused = deliver(lab.home, "up", lab.written(race(lab)))
    assert (refused.returncode, "[engine.no-loaders]" in refused.stderr) == (2, True), refused.stderr
    content = json.loads(Path(lab.written(race(lab))).read_text())
    content |= {"target": {"kind": "deployment", "namespace": "demo", "image": "vllm/vllm-openai:v0.33.0"}}
    content |= {"storage": {"claim": "models"}}
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(content))
    refused = deliver(lab.home, "up", str(tmp_path / "cluster.yaml"))
    assert (refused.returncode, "loaders race on a host only" in refused.stderr) == (2, True), refused.stderr
    assert not lab.host.world(NAME).objects


def test_a_lock_that_names_another_loader_than_the_one_that_has_won_is_refused(lab: Lab, tmp_path: Path) -> None:
    lab.says("up", lab.written(race(lab)))
    locked = yaml.safe_load(lab.says("lock", NAME))
    locked["lock"]["loader"] = "default"
    (tmp_path / "lock.yaml").write_text(yaml.safe_dump(locked))
    refused = deliver(lab.home, "up", str(tmp_path / "lock.yaml"))
    assert (refused.returncode, "[release.other-loader]" in refused.stderr) == (2, True), refused.stderr
    assert loaded(lab) == QUICK
