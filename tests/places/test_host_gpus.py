"""Engines get GPUs by what the machine's driver tells: a library of its name stands in
for it (``tests/parts/gpus.py``).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from model_delivery.base import NoRoom, Permanent
from model_delivery.places.host import cards, gpus
from model_delivery.places.host.place import Host
from model_delivery.targets.process import ENGINE
from model_delivery.values import Ref
from tests.parts.gpus import DIES, HANGS, LOST, MISMATCH, Card, Driver
from tests.places.conftest import NAME, engine, ready

SHARE, RANKS = "--gpu-memory-utilization", "--tensor-parallel-size"


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver(tmp_path)
    for name, value in made.environ.items():
        monkeypatch.setenv(name, value)
    return made


@pytest.fixture
def payload(payload: dict[str, Any]) -> dict[str, Any]:
    """No CPU of its own: cards alone shall be few."""
    return {**payload, "cpus": 0}


def started(host: Host, payload: dict[str, Any], release: str, *args: str) -> int:
    """Its process."""
    host.put(engine(payload, release, *args))
    return int(ready(host, release)["pid"])


def bound(host: Host, release: str) -> list[int]:
    return list(host.world(NAME).objects[Ref(ENGINE, release)].status["gpus"])


def refused(host: Host, payload: dict[str, Any], *args: str) -> tuple[str, str]:
    with pytest.raises(NoRoom) as caught:
        host.put(engine(payload, "r9", *args))
    (finding,) = caught.value.findings
    assert finding.code == "host.no-room"
    return finding.why, "\n".join(finding.evidence)


def test_a_free_card_is_bound_by_the_number_that_cuda_then_counts_by(
    host: Host, payload: dict[str, Any], driver: Driver
) -> None:
    driver.tells(Card(held={os.getpid(): 50}), Card())
    environ = psutil.Process(started(host, {**payload, "gpus": 1}, "r1")).environ()
    assert bound(host, "r1") == [1]
    assert (environ["CUDA_VISIBLE_DEVICES"], environ["CUDA_DEVICE_ORDER"]) == ("1", "PCI_BUS_ID")


def test_without_a_driver_there_are_no_cards(
    host: Host, payload: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    assert gpus.read() == ()
    why, _ = refused(host, {**payload, "gpus": 1})
    assert "1 GPU wanted" in why
    assert "0 of 0" in why
    started(host, payload, "r1")
    assert host.cards(NAME) == {}


def test_a_card_that_a_stranger_half_holds_is_given_by_a_share_that_fits(
    host: Host, payload: dict[str, Any], driver: Driver
) -> None:
    driver.tells(Card(held={os.getpid(): 50}))
    why, seen = refused(host, {**payload, "gpus": 1})
    assert "92% of the memory of each, 0 of 1" in why
    me = psutil.Process().name()
    assert seen == f"GPU 0 (NVIDIA H200): 50.0 of 100.0 GiB free; process {os.getpid()} ({me}) holds 50.0"
    started(host, payload, "r1", SHARE, "0.4")
    assert bound(host, "r1") == [0]


def test_two_releases_share_a_card_and_a_third_finds_no_room(
    host: Host, payload: dict[str, Any], driver: Driver
) -> None:
    driver.tells(Card())
    first = started(host, payload, "r1", f"{SHARE}=0.3")
    second = started(host, payload, "r2", SHARE, "0.6")
    assert bound(host, "r1") == bound(host, "r2") == [0]
    driver.tells(Card(held={first: 31, second: 61}))
    seen = {name: tuple((one.index, one.share, one.bytes) for one in had) for name, had in host.cards(NAME).items()}
    assert seen == {"r1": ((0, 30.0, 31 << 30),), "r2": ((0, 60.0, 61 << 30),)}
    why, told = refused(host, payload, SHARE, "0.1")
    assert "10% of the memory of each and 1.5 GiB beside other engines, 0 of 1" in why
    assert "m r1 has 30%, 31.0 in use; m r2 has 60%, 61.0 in use" in told


def test_what_a_release_has_not_taken_yet_is_kept_for_it(host: Host, payload: dict[str, Any], driver: Driver) -> None:
    driver.tells(Card())
    started(host, payload, "r1", SHARE, "0.5")
    refused(host, payload, SHARE, "0.48")
    started(host, payload, "r2", SHARE, "0.47")


def test_a_card_that_nobody_is_on_comes_first(host: Host, payload: dict[str, Any], driver: Driver) -> None:
    driver.tells(Card(), Card(held={os.getpid(): 3}), Card())
    started(host, payload, "r1", SHARE, "0.1")
    started(host, payload, "r2", SHARE, "0.1")
    started(host, payload, "r3", SHARE, "0.1")
    assert [bound(host, name) for name in ("r1", "r2", "r3")] == [[0], [2], [0]]


def test_ranks_need_a_card_each_and_the_same_share_of_each(host: Host, payload: dict[str, Any], driver: Driver) -> None:
    driver.tells(Card(), Card(held={os.getpid(): 30}))
    why, _ = refused(host, payload, RANKS, "2", SHARE, "0.8")
    assert why.startswith("2 GPUs wanted, with 80% of the memory of each, 1 of 2")
    environ = psutil.Process(started(host, payload, "r1", RANKS, "2", SHARE, "0.6")).environ()
    assert environ["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_a_lost_card_is_passed_over_and_told_of(host: Host, payload: dict[str, Any], driver: Driver) -> None:
    driver.tells(Card(fault=LOST), Card())
    started(host, {**payload, "gpus": 1}, "r1")
    assert bound(host, "r1") == [1]
    _, seen = refused(host, {**payload, "gpus": 2})
    assert "GPU 0 (NVIDIA GPU): GPU is lost" in seen


def test_a_release_that_leaves_makes_room_before_it_has_gone(
    host: Host, payload: dict[str, Any], driver: Driver
) -> None:
    driver.tells(Card())
    pid = started(host, {**payload, "gpus": 1}, "r1")
    driver.tells(Card(held={pid: 93}))
    other = engine({**payload, "gpus": 1}, "r2")
    with pytest.raises(NoRoom):
        host.put(other, dry_run=True)
    assert host.without(NAME, ["r1"]).put(other, dry_run=True).action == "created"


def test_memory_of_an_engine_that_has_just_ended_is_waited_for(
    host: Host, payload: dict[str, Any], driver: Driver
) -> None:
    driver.tells(Card(held={2**22 + 1: 90}))
    driver.tells(Card(), then=True)
    started(host, {**payload, "gpus": 1}, "r1")


def test_in_a_container_memory_that_nobody_is_seen_to_hold_may_be_our_own_engines(
    host: Host, payload: dict[str, Any], driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cards, "ENDING_SECONDS", 0)
    driver.tells(Card())
    started(host, payload, "r1", SHARE, "0.3")
    driver.tells(Card(unseen=31))
    assert [one.bytes for one in host.cards(NAME)["r1"]] == [None]
    started(host, payload, "r2", SHARE, "0.6")
    driver.tells(Card(unseen=97))
    refused(host, payload, SHARE, "0.1")


def test_an_engine_that_an_older_version_bound_has_its_card_for_itself(
    host: Host, payload: dict[str, Any], driver: Driver
) -> None:
    driver.tells(Card())
    started(host, payload, "r1", SHARE, "0.1")
    file = next(host.processes(NAME, "Engine-r1")).path / "state.json"
    file.write_text(file.read_text().replace(', "share": 0.1', ""))
    assert "share" not in next(host.processes(NAME, "Engine-r1")).binding
    _, seen = refused(host, payload, SHARE, "0.1")
    assert "m r1 has whole, 0.0 in use" in seen


def test_a_card_whose_memory_the_driver_does_not_tell_is_given_to_one_engine(
    host: Host, payload: dict[str, Any], driver: Driver
) -> None:
    driver.tells(Card(total=0, name=b"NVIDIA GB10"))
    started(host, {**payload, "gpus": 1}, "r1")
    refused(host, payload, SHARE, "0.1")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB"),
        (b"\xff\xfe broken", "NVIDIA GPU"),
        (b"\x1b]0;pwned\x07", "NVIDIA GPU"),
    ],
)
def test_a_name_is_shown_only_where_it_can_be_one(
    host: Host, payload: dict[str, Any], driver: Driver, name: bytes, shown: str
) -> None:
    driver.tells(Card(name=name, uuid=b"zz", held={os.getpid(): 99}))
    _, seen = refused(host, {**payload, "gpus": 1})
    assert seen.startswith(f"GPU 0 ({shown}): 1.0 of 100.0 GiB free")


@pytest.mark.parametrize(
    ("code", "why"), [(MISMATCH, "version mismatch"), (DIES, "ended the process"), (999, "Unknown"), (HANGS, "answer")]
)
def test_a_driver_that_errs_dies_or_hangs_refuses_whoever_wants_a_card_and_nobody_else(
    host: Host, payload: dict[str, Any], driver: Driver, monkeypatch: pytest.MonkeyPatch, code: int, why: str
) -> None:
    driver.tells(Card())
    started(host, {**payload, "gpus": 1}, "r1")
    monkeypatch.setattr(cards, "LOOK_SECONDS", 0.5)
    monkeypatch.setattr(gpus.read, "__defaults__", (0.5,))
    driver.tells(init=code)
    with pytest.raises(Permanent, match=why):
        host.put(engine({**payload, "gpus": 1}, "r2"))
    started(host, payload, "r3")
    assert [(one.index, one.bytes) for one in host.cards(NAME)["r1"]] == [(0, None)]
