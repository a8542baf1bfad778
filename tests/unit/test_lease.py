"""Whose run it is: by the waiter's own clock, never by what another clock wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from model_delivery.base import Permanent, Refused, SystemClock
from model_delivery.base.process import identity, lives
from model_delivery.places.host.place import Host
from model_delivery.run.lease import REF, Lease
from tests.protocol.simulated import Clock, Place

TERM = 60.0


class Ahead(Clock):
    """Of another machine: its time passes as ours does, and says two minutes more."""

    def now(self) -> float:
        return super().now() + 120


def seen_from_afar(waits: Callable[[], None]) -> tuple[Clock, Place]:
    """A place where nobody sees the holder's process."""
    clock = Ahead()
    return clock, Place(clock, together=False, room=9, failing=lambda _: False, wait=waits, alive=lambda _: True)


def test_a_living_runs_lease_is_not_taken_by_a_clock_that_is_ahead() -> None:
    its_clock = Clock()

    def renew() -> None:
        """What its thread does."""
        its_clock.sleep(15)
        place.put(holder._resource())

    clock, place = seen_from_afar(renew)
    holder = Lease(place, "m", "one", its_clock)
    holder.acquire("refuse")
    with pytest.raises(Refused, match="another run is delivering m"):
        Lease(place, "m", "two", clock).acquire("refuse")
    with pytest.raises(Permanent, match="another run still delivers m"):
        Lease(place, "m", "two", clock).acquire("wait", timeout=600)
    holder.fence()


def test_a_dead_runs_lease_is_taken_after_its_time_by_a_clock_that_is_behind_too() -> None:
    clock, place = seen_from_afar(lambda: None)
    Lease(place, "m", "one", clock).acquire("refuse")
    behind = Clock()
    place.clock = behind
    start = behind.monotonic()
    Lease(place, "m", "two", behind).acquire("wait")
    assert TERM < behind.monotonic() - start < 2 * TERM


def test_a_process_is_known_only_within_its_own_boot_and_namespace() -> None:
    me = identity()
    assert lives(me) is True
    assert lives(me | {"start": "1"}) is False
    assert lives(me | {"space": me["space"] + "0"}) is None
    assert lives({}) is None


def test_a_lease_is_renewed_again_after_anything_that_kept_it_from_it(tmp_path: Path) -> None:
    host = Host(tmp_path / "home")
    lease = Lease(host, "m", "one", SystemClock(), seconds=0.4)
    lease.acquire("refuse")
    lock = host.home / "lock"
    with lease.kept():
        lock.unlink()
        lock.mkdir()  # whoever opens it gets an OSError, which no Trouble is
        first = lease.version
        host.hint("m", 0.3)
        host.hint("m", 0.3)
        lock.rmdir()
        while lease.version == first:
            host.hint("m", 0.1)
        lease.fence()
    assert host.get("m", REF) is None


def test_a_damaged_lease_is_nobodys(tmp_path: Path) -> None:
    host = Host(tmp_path / "home")
    Lease(host, "m", "one", SystemClock()).acquire("refuse")
    (file,) = host.folder("m").glob("objects/Lease/*.json")
    file.write_text("{")
    other = Lease(host, "m", "two", SystemClock())
    other.acquire("refuse")
    other.fence()
