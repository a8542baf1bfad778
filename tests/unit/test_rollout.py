"""The stages of a rollout, as values."""

from __future__ import annotations

import pytest

from model_delivery.base import Refused
from model_delivery.targets.process import whole_cpus
from model_delivery.values import Address, Capabilities, Desired, Payload, Release, Strategy, stages

NOTHING = Payload(names=(), args=())
OLD, NEW = Release("old", NOTHING), Release("new", NOTHING)
EMPTY = Desired("m", address=Address("127.0.0.1", 8000))
SERVING = Desired("m", (OLD,), {"old": 100}, EMPTY.address)
SLOTS = Capabilities(dark_first=True, weights="slots")
LIGHT = Capabilities(dark_first=False, weights="none")


def told(
    strategy: Strategy, old: Desired, weights: tuple[int, ...] = (), can: Capabilities = SLOTS
) -> list[tuple[str, tuple[str, ...], dict[str, int], bool]]:
    return [
        (str(s.phase), tuple(r.id for r in s.desired.releases), s.desired.shares, bool(s.gates))
        for s in stages(strategy, old, NEW, weights, can)
    ]


def test_a_first_release_is_tested_before_it_gets_traffic() -> None:
    assert told("blue-green", EMPTY) == [("dark", ("new",), {}, True), ("promote", ("new",), {"new": 100}, False)]


def test_a_first_release_of_a_target_that_cannot_be_dark_is_tested_with_traffic() -> None:
    assert told("blue-green", EMPTY, can=LIGHT)[0] == ("dark", ("new",), {"new": 100}, True)


def test_blue_green_keeps_the_old_release_until_the_new_one_has_the_traffic() -> None:
    assert told("blue-green", SERVING) == [
        ("dark", ("old", "new"), {"old": 100}, True),
        ("promote", ("new", "old"), {"new": 100}, False),
    ]


def test_recreate_stops_the_old_release_first() -> None:
    assert [(name, releases, shares) for name, releases, shares, _ in told("recreate", SERVING)] == [
        ("stop", (), {}),
        ("dark", ("new",), {}),
        ("promote", ("new",), {"new": 100}),
    ]


def test_a_canary_is_judged_at_every_share() -> None:
    shares = [(name, shares, judged) for name, _, shares, judged in told("canary", SERVING, (10, 50))]
    assert shares == [
        ("dark", {"old": 100}, True),
        ("canary-10", {"old": 90, "new": 10}, True),
        ("canary-50", {"old": 50, "new": 50}, True),
        ("promote", {"new": 100}, False),
    ]


def test_a_share_that_slots_cannot_hold_is_refused() -> None:
    with pytest.raises(Refused, match="steps of 5 %"):
        told("canary", SERVING, (12,))


def test_a_canary_is_refused_where_traffic_cannot_be_weighed() -> None:
    with pytest.raises(Refused, match="blue-green"):
        told("canary", SERVING, (10,), LIGHT)


@pytest.mark.parametrize(("limit", "whole"), [(2, 2), (1.5, 2), (0.25, 1), ("500m", 1), ("1500m", 2), ("4", 4)])
def test_cpus_are_bound_whole(limit: float | str, whole: int) -> None:
    assert whole_cpus(limit) == whole
