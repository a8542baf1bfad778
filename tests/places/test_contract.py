"""What every place promises: the same tests on the host and on a real control plane."""

from __future__ import annotations

import pytest

from model_delivery.base import BadInput, Permanent, Refused, SystemClock, Trouble
from model_delivery.places.guarded import guarded, observed
from model_delivery.run.converge import changes, converge
from model_delivery.run.lease import REF, Lease
from model_delivery.values import ABSENT, ANY, RECORD_REF, RELEASE, Mismatch, Ref, Resource, Snapshot
from tests.parts.ports import free_port
from tests.places.conftest import NAME, Given

ODD = {"text": "quote ' \" newline \n {{ template }} $(VAR) ünïcode \u2028", "list": [1, {"a": None}], "empty": {}}


def record(**spec: object) -> Resource:
    return Resource(RECORD_REF, "record", NAME, spec)


def test_a_record_is_compared_and_swapped(given: Given) -> None:
    place = given.open()
    first = place.put(record(a=1), expect=ABSENT)
    assert first.action == "created"
    with pytest.raises(Mismatch):
        given.open().put(record(a=2), expect=ABSENT)
    second = place.put(record(a=2), expect=first.version or "")
    assert second.action == "updated"
    with pytest.raises(Mismatch):
        given.open().put(record(a=3), expect=first.version or "")
    seen = given.open().get(NAME, RECORD_REF)
    assert seen is not None
    assert (seen.resource, seen.version) == (record(a=2), second.version)
    assert place.put(record(a=2)).action == "unchanged"


def test_what_is_stored_comes_back_as_it_was(given: Given) -> None:
    place = given.open()
    place.put(record(**ODD))
    release = Resource(Ref(RELEASE, "abc"), "record", NAME, ODD, "abc")
    place.put(release)
    world = given.open().world(NAME)
    assert world.objects[RECORD_REF].resource.spec == ODD
    assert world.objects[release.ref].resource == release
    assert given.open().deliveries() == (NAME,)


def test_a_dry_run_says_what_would_be_and_writes_nothing(given: Given) -> None:
    place = given.open()
    for resource in (record(a=1), given.thing("r1", 1), given.way(1)):
        assert place.put(resource, dry_run=True).action == "created"
    assert not place.world(NAME).objects
    place.put(given.thing("r1", 1))
    assert place.put(given.thing("r1", 1), dry_run=True).action == "unchanged"
    changed = place.put(given.thing("r1", 2), dry_run=True)
    assert changed.action == "updated"
    assert changed.diff
    assert place.put(given.thing("r1", 1), dry_run=True).action == "unchanged"


def test_a_put_again_changes_nothing_and_keeps_the_version(given: Given) -> None:
    place = given.open()
    first = place.put(given.thing("r1", 1))
    again = given.open().put(given.thing("r1", 1))
    assert (first.action, again.action, again.version) == ("created", "unchanged", first.version)


def test_what_is_gone_is_absent(given: Given) -> None:
    place = given.open()
    place.put(given.thing("r1", 1))
    assert place.delete(NAME, given.thing("r1", 1).ref).action == "deleted"
    assert place.delete(NAME, given.thing("r1", 1).ref).action == "absent"
    assert place.get(NAME, given.thing("r1", 1).ref) is None


def test_a_route_is_written_only_over_what_was_read(given: Given) -> None:
    place = given.open()
    first = place.put(given.way(1), expect=ABSENT)
    with pytest.raises(Mismatch):
        place.put(given.way(1), expect=ABSENT)
    seen = place.get(NAME, given.way(1).ref)
    assert seen is not None
    assert seen.version == first.version
    second = place.put(given.way(2), expect=seen.version)
    assert second.action == "updated"
    with pytest.raises(Mismatch):
        place.put(given.way(1), expect=seen.version)


def test_converge_makes_what_is_missing_and_removes_what_is_not_wanted(given: Given) -> None:
    place = given.open()
    place.put(record(a=1))
    wanted = (given.thing("r1", 1), given.way(1))
    assert [c.action for c in converge(place, NAME, wanted).changes] == ["created", "created"]
    assert converge(place, NAME, wanted).changes == ()
    place.delete(NAME, given.way(1).ref)
    healed = converge(given.open(), NAME, wanted)
    assert [(c.ref, c.action) for c in healed.changes] == [(given.way(1).ref, "created")]
    gone = changes(place, NAME, ())
    assert {change.ref for change in gone} == {r.ref for r in wanted}
    converge(place, NAME, ())
    assert set(place.world(NAME).objects) == {RECORD_REF}


def test_a_route_that_another_moved_during_the_run_stops_it(given: Given) -> None:
    place = given.open()
    done = converge(place, NAME, (given.way(1),))
    seen = place.get(NAME, given.way(1).ref)
    assert seen is not None
    converge(place, NAME, (given.way(1),), done.route)
    given.open().put(given.way(2), expect=ANY)
    with pytest.raises(Permanent, match="changed by somebody else during this run"):
        converge(place, NAME, (given.way(1),), done.route)


def test_one_lease_at_a_time(given: Given) -> None:
    mine = Lease(given.open(), NAME, "one", SystemClock())
    mine.acquire("wait")
    other = Lease(given.open(), NAME, "two", SystemClock())
    with pytest.raises(Refused, match="another run is delivering") as refused:
        other.acquire("refuse")
    assert "request one" in refused.value.text
    again = Lease(given.open(), NAME, "one", SystemClock())
    again.acquire("refuse")
    again.fence()
    with pytest.raises(Permanent, match="was lost"):
        mine.fence()
    mine.release()
    assert given.open().get(NAME, REF) is not None, "only its holder gives it back"
    again.release()
    other.acquire("refuse")
    other.release()


def test_a_lease_that_is_kept_is_renewed(given: Given) -> None:
    place = given.open()
    quick = Lease(place, NAME, "one", SystemClock(), seconds=0.8)
    quick.acquire("wait")
    first = place.get(NAME, REF)
    with quick.kept():
        while (now := place.get(NAME, REF)) is None or first is None or now.version == first.version:
            place.hint(NAME, 0.1)
        assert now.resource.spec["expires"] > first.resource.spec["expires"]
        quick.fence()
    assert place.get(NAME, REF) is None


def test_what_a_place_says_of_itself_it_says_everywhere(given: Given) -> None:
    place = given.open()
    snapshot = Snapshot(source="huggingface", key="a--b", commit="0" * 40, files=())
    assert place.has_model(snapshot, None) is (False if place.keeps_files else None)
    assert place.elsewhere
    assert not place.listener(free_port())
    assert place.own_image() is None
    assert place.look_up("/api/v1/namespaces/no-such-namespace") is None
    assert (place.look_up("/version") is None) == (place.rights() is None) == place.keeps_files


def test_a_release_that_never_ran_has_no_log(given: Given) -> None:
    place = given.open()
    if place.keeps_files:
        with pytest.raises(BadInput, match="no log of m r1"):
            place.engine_log(NAME, "r1")
    else:
        assert not list(place.engine_log(NAME, "r1", follow=True))


def test_an_effect_is_fenced_and_seen_and_a_dry_run_is_neither(given: Given) -> None:
    seen: list[tuple[str, str, Ref]] = []
    fence: list[Trouble] = []

    def fenced() -> None:
        if fence:
            raise fence[0]

    with observed(lambda *effect: seen.append(effect)):
        place = guarded(given.open(), fenced)
    place.put(record(a=1), dry_run=True)
    assert not seen
    place.put(record(a=1))
    place.delete(NAME, RECORD_REF)
    expected = [(when, verb, RECORD_REF) for verb in ("put", "delete") for when in ("before", "after")]
    assert seen == expected
    fence.append(Permanent())
    with pytest.raises(Permanent):
        place.put(record(a=1))
    assert place.get(NAME, RECORD_REF) is None
    assert seen == expected
