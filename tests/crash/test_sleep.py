"""A standby that sleeps: it gives its card back, is woken by a rollback or a refusal, and
never onto a card that is taken. The stand-in engine sleeps by vLLM's own addresses.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from model_delivery.places.host.sleeping import PRIVATE
from model_delivery.values import Ref
from tests.crash.lab import NAME, Lab
from tests.parts.ports import free_port
from tests.unit.test_cli import deliver

WHOLE = len(os.sched_getaffinity(0))
SLEEPS: dict[str, Any] = {"standby": "30m", "standby_mode": "sleep"}
ONE_CARD: dict[str, Any] = SLEEPS | {"cpus": WHOLE, "when_full": "recreate"}


def card(lab: Lab) -> tuple[str, str]:
    return "--card", str(lab.home.parent / "card")


def delivered(lab: Lab, *args: str, code: int = 0, **more: Any) -> str:
    """The release that serves then."""
    done = lab.deliver(lab.untested(*args, **more))
    assert done.code == code, done.said
    return str(lab.record.serving)


def engine(lab: Lab, release: str) -> psutil.Process:
    found = lab.host.world(NAME).objects
    return psutil.Process(
        next(o.status["pid"] for ref, o in found.items() if ref.name == release and "pid" in o.status)
    )


def states(lab: Lab) -> dict[str, str]:
    return {row["release"]: row["state"] for row in json.loads(lab.says("status", NAME, "--json"))["running"]}


def test_on_one_card_the_old_release_sleeps_and_a_rollback_wakes_it(lab: Lab) -> None:
    old = delivered(lab, *card(lab), **ONE_CARD)
    was = engine(lab, old)
    spec = lab.untested(*card(lab), **ONE_CARD)
    assert lab.deliver(spec).code == 0
    new = str(lab.record.serving)
    assert states(lab) == {new: "up", old: "asleep"}
    lab.converged(new)
    assert "unchanged" in lab.says("up", lab.written(spec))
    assert deliver(lab.home, "status", NAME, "--probe").returncode == 0
    assert states(lab) == {new: "up", old: "asleep"}
    lab.says("rollback", NAME)
    lab.converged(old)
    assert engine(lab, old) == was, "it was started anew"
    lab.says("down", NAME)
    assert not lab.processes()


def test_a_refusal_on_one_card_wakes_what_served(lab: Lab) -> None:
    old = delivered(lab, *card(lab), **ONE_CARD)
    was = engine(lab, old)
    refused = lab.deliver(lab.spec(*card(lab), slo={"ttft_p95_max": "1ms"}, **ONE_CARD))
    assert refused.code == 4, refused.said
    lab.converged(old)
    assert engine(lab, old) == was, "it was started anew"


def test_a_candidate_that_never_starts_wakes_what_served(lab: Lab) -> None:
    old = delivered(lab, *card(lab), **ONE_CARD)
    was = engine(lab, old)
    delivered(lab, *card(lab), "--fail-start", code=1, **ONE_CARD)
    lab.converged(old)
    assert engine(lab, old) == was, "it was started anew"


def test_streams_that_are_open_end_well_before_it_sleeps(lab: Lab) -> None:
    old = delivered(lab, "--itl", "40", **SLEEPS)
    said: list[str] = []
    began = threading.Event()

    def ask() -> None:
        asked = {"model": NAME, "prompt": "x", "max_tokens": 100, "stream": True}
        url = f"http://127.0.0.1:{lab.port}/v1/completions"
        with httpx.stream("POST", url, json=asked, timeout=30, trust_env=False) as answer:
            for line in answer.iter_lines():
                said.append(line)
                began.set()

    stream = threading.Thread(target=ask)
    stream.start()
    assert began.wait(10)
    new = delivered(lab, **SLEEPS)
    stream.join(20)
    assert [line for line in said if line][-1] == "data: [DONE]"
    assert len(said) > 200
    assert states(lab) == {new: "up", old: "asleep"}


def test_one_that_cannot_sleep_is_stopped_and_a_rollback_starts_it_anew(lab: Lab) -> None:
    old = delivered(lab, "--sleepless", *card(lab), **ONE_CARD)
    new = delivered(lab, *card(lab), **ONE_CARD)
    assert states(lab) == {new: "up", old: "stopped"}
    lab.converged(new)
    lab.says("rollback", NAME)
    lab.converged(old)


def test_one_that_died_in_its_sleep_is_told_and_started_anew_by_a_rollback(lab: Lab) -> None:
    old = delivered(lab, *card(lab), **ONE_CARD)
    new = delivered(lab, *card(lab), **ONE_CARD)
    sleeper = engine(lab, old)
    sleeper.kill()
    psutil.wait_procs([sleeper], 10)
    assert states(lab) == {new: "up", old: "stopped"}
    lab.says("rollback", NAME)
    lab.converged(old)


def test_a_card_that_somebody_else_took_ends_in_a_service_that_answers(lab: Lab) -> None:
    old = delivered(lab, *card(lab), **SLEEPS)
    new = delivered(lab, **SLEEPS)
    serves = engine(lab, new)
    with Path(card(lab)[1]).open("w") as taken:
        fcntl.flock(taken, fcntl.LOCK_EX | fcntl.LOCK_NB)
        refused = deliver(lab.home, "rollback", NAME)
    assert refused.returncode == 1, refused.stderr
    assert f"{old} is not woken (/wake_up was answered with 500): started anew" in refused.stderr
    lab.converged(new)
    assert engine(lab, new) == serves


def test_what_another_delivery_took_meanwhile_is_never_taken_from_it(lab: Lab) -> None:
    old = delivered(lab, **SLEEPS)
    delivered(lab, **SLEEPS)
    other = lab.untested(standby="0s").model_dump(mode="json") | {"name": "other"}
    other["target"]["port"] = free_port()
    file = lab.home.parent / "other.yaml"
    file.write_text(json.dumps(other))
    lab.says("up", str(file))
    told = deliver(lab.home, "rollback", NAME)
    assert told.returncode == 0, told.stderr
    assert f"{old} is not woken (others have its cards): started anew" in told.stderr
    assert states(lab) == {old: "up"}
    assert lab.token()
    assert "other: up" in lab.says("status", "other")


def test_the_addresses_of_its_sleep_are_not_for_clients(lab: Lab) -> None:
    serving = delivered(lab, **SLEEPS)
    url = f"http://127.0.0.1:{lab.port}"
    for path in (*PRIVATE, "/SLEEP", "//sleep", "/./sleep", "/v1/../sleep", "/%73leep", "/sleep/", "/sleep?level=1"):
        for method in ("GET", "POST"):
            answer = httpx.request(method, url + path, timeout=5, trust_env=False, follow_redirects=True)
            assert answer.status_code in (404, 405), (method, path, answer.status_code)
    assert states(lab) == {serving: "up"}
    lab.converged(serving)


def test_a_router_of_an_older_version_is_told_before_anything_is_touched(lab: Lab) -> None:
    old = delivered(lab)
    config = lab.home / "deliveries" / NAME / "processes" / "Router-router" / "caddy.json"
    config.write_text(config.read_text().replace("/sleep", "/nothing"))
    refused = deliver(lab.home, "up", lab.written(lab.untested(**SLEEPS)))
    assert (refused.returncode, "[host.router-open]" in refused.stderr) == (3, True), refused.stderr
    lab.converged(old)


@pytest.mark.parametrize("mode", ["run", "off"])
def test_the_other_modes(lab: Lab, mode: str) -> None:
    old = delivered(lab, standby="30m", standby_mode=mode)
    new = delivered(lab, standby="30m", standby_mode=mode)
    assert states(lab) == ({new: "up", old: "up"} if mode == "run" else {new: "up"})


def test_an_engine_that_cannot_sleep_is_refused_where_that_is_asked(lab: Lab) -> None:
    text = (lab.engine / "engine.toml").read_text()
    plain = lab.home.parent / "plain"
    plain.mkdir()
    for file in lab.engine.iterdir():
        (plain / file.name).symlink_to(file)
    (plain / "engine.toml").unlink()
    (plain / "engine.toml").write_text(text.partition("[sleep]")[0])
    lab.engine = plain
    refused = deliver(lab.home, "up", lab.written(lab.untested(**SLEEPS)))
    assert (refused.returncode, "[engine.cannot-sleep]" in refused.stderr) == (3, True), refused.stderr
    assert not lab.home.exists() or not lab.host.deliveries()


def test_the_standby_serves_while_what_stands_still_is_started_anew(lab: Lab) -> None:
    old = delivered(lab, **SLEEPS)
    spec = lab.untested(**SLEEPS)
    assert lab.deliver(spec).code == 0
    new = str(lab.record.serving)
    wedged = engine(lab, new)
    wedged.send_signal(10)
    healed = deliver(lab.home, "up", lab.written(spec))
    assert healed.returncode == 0, healed.stderr
    assert f"{old} stands in meanwhile" in healed.stderr
    assert "healed" in healed.stdout
    lab.converged(new)
    assert engine(lab, new) != wedged
    assert states(lab) == {new: "up", old: "asleep"}
    assert lab.host.get(NAME, Ref(next(r.kind for r in lab.host.world(NAME).objects if r.name == old), old))


def test_the_plan_says_who_sleeps_and_a_first_sleep_is_before_the_traffic(lab: Lab) -> None:
    old = delivered(lab, standby="30m")
    spec = lab.untested(**SLEEPS)
    assert f"then {old} stays on standby for 30m (awake: it was started without sleep mode)" in lab.says(
        "plan", lab.written(spec)
    )
    new = delivered(lab, **SLEEPS, strategy="recreate")
    told = lab.says("plan", lab.written(lab.untested(**ONE_CARD, strategy="recreate")))
    assert "stop → dark → nap → promote" in told
    assert f"Engine/{new} would be updated (it goes to sleep, and gives its cards back)" in told
    assert f"then {new} sleeps for 30m" in told
