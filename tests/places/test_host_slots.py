"""The router's slots: whatever is in their place, they are made again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model_delivery.base import Permanent
from model_delivery.places.host.place import Host
from model_delivery.run.converge import converge
from model_delivery.targets.process import SLOT
from model_delivery.values import Ref
from tests.places.conftest import NAME, engine, ready
from tests.places.test_host_faults import slots

SPOILT: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a link": lambda path: path.symlink_to("/etc/hostname"),
    "a broken link": lambda path: path.symlink_to("/nowhere"),
    "an empty folder": Path.mkdir,
    "another address": lambda path: path.write_text("127.0.0.1:1"),
    "no text": lambda path: path.write_bytes(b"\xff"),
    "nothing": lambda _: None,
}


@pytest.mark.parametrize("what", SPOILT)
def test_whatever_is_in_a_slots_place_the_slot_is_put_again_and_ended(
    host: Host, payload: dict[str, Any], what: str
) -> None:
    wanted = (engine(payload), *slots("r1"))
    converge(host, NAME, wanted)
    pid, slot = ready(host, "r1")["pid"], host.slots(NAME) / "03"
    address = slot.read_text()
    for end in (False, True):
        slot.unlink()
        SPOILT[what](slot)
        assert host.world(NAME).objects[Ref(SLOT, "03")].status["written"] != address
        if end:
            converge(host, NAME, ())
            assert not host.world(NAME).objects
            assert not os.path.lexists(slot) or what == "an empty folder"
        else:
            assert [change.ref.name for change in converge(host, NAME, wanted).changes] == ["03"]
            assert slot.read_text() == address
            assert not slot.is_symlink()
            assert ready(host, "r1")["pid"] == pid


def test_a_slot_that_is_a_folder_with_something_in_it_is_named_and_stays(host: Host, payload: dict[str, Any]) -> None:
    slot, wanted = host.slots(NAME) / "03", (engine(payload), *slots("r1"))
    (slot / "mine").mkdir(parents=True)
    with pytest.raises(Permanent, match=f"{slot} is a folder that holds something"):
        converge(host, NAME, wanted)
    converge(host, NAME, ())
    assert not host.world(NAME).objects
    assert (slot / "mine").is_dir()
