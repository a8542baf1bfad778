"""The hub's API by olah, driven by huggingface_hub; its bytes by a range server; the
network between by toxiproxy.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from model_delivery.base import Refused, Retryable
from model_delivery.models.manifest import model_folder
from model_delivery.models.sources.huggingface import HuggingFaceModel
from model_delivery.models.store.commit import fetch as fetch_into
from model_delivery.models.store.part import CHUNK
from model_delivery.models.store.transfer import Patience
from model_delivery.run.resolve import resolve_model
from model_delivery.steps.fetch import run as fetch
from tests.fetch.fetching import WEIGHTS, given, models, whole
from tests.parts.hubs.huggingface import REPO, HuggingFaceHub, running_hub
from tests.parts.olah import repository, running_olah
from tests.parts.ports import free_port
from tests.parts.tiny_model import tiny_model
from tests.parts.toxiproxy import Network, network
from tests.unit.test_answering import engine
from tests.unit.test_answering import spec as answering
from tests.unit.test_cli import deliver

MODEL = HuggingFaceModel.model_validate({"source": "huggingface", "repo": REPO})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HuggingFaceHub]:
    with running_hub(tiny_model(tmp_path / "hub", size=6 * CHUNK)) as made, running_olah(tmp_path) as api:
        repository(tmp_path / "mirrors", made.files)
        made.api = api
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        yield made


def test_a_real_hubs_list_is_understood_and_the_model_is_whole(hub: HuggingFaceHub, root: Path) -> None:
    done = fetch(given(root, MODEL))
    whole(done, hub.files)
    assert fetch(given(root, MODEL)).fetched_bytes == 0


def test_a_real_hubs_moved_branch_is_a_new_commit(hub: HuggingFaceHub, root: Path, tmp_path: Path) -> None:
    first = fetch(given(root, MODEL))
    hub.files["tokenizer.json"] = b'{"second": true}'
    commit = repository(tmp_path / "mirrors", hub.files)
    second = fetch(given(root, MODEL))
    whole(second, hub.files)
    assert Path(second.path).name == commit != Path(first.path).name


def delivered(home: Path, file: Path) -> tuple[str, str]:
    """The release and the commit that ``up FILE`` has promoted."""
    made = deliver(home, "up", str(file))
    assert made.returncode == 0, made.stderr
    (ended,) = json.loads(deliver(home, "history", "small", "--json").stdout)
    assert ended["outcome"] == "promoted"
    return ended["release"], ended["commit"]


def test_a_locked_release_is_made_again_elsewhere_though_the_branch_has_moved(
    hub: HuggingFaceHub, tmp_path: Path
) -> None:
    engine(tmp_path)
    file, locked = answering(tmp_path, tmp_path, free_port()), tmp_path / "locked.yaml"
    asked = yaml.safe_load(file.read_text()) | {"model": {"source": "huggingface", "repo": REPO}}
    file.write_text(yaml.safe_dump(asked))
    here, there, unlocked = homes = [tmp_path / name for name in ("here", "there", "unlocked")]
    try:
        release, commit = delivered(here, file)
        locked.write_text(deliver(here, "lock", "small").stdout)
        hub.older[commit] = files = dict(hub.files)
        hub.files["tokenizer.json"] = b'{"second": true}'
        moved = repository(tmp_path / "mirrors", hub.files)
        assert deliver(here, "down", "small").returncode == 0

        hub.asked.clear()
        assert delivered(there, locked) == (release, commit)
        assert not [path for path, _ in hub.asked if "/revision/main" in path], "where the branch is, nobody asks"
        (tokenizer,) = (there / "models").rglob("tokenizer.json")
        assert tokenizer.read_bytes() == files["tokenizer.json"]
        assert deliver(there, "down", "small").returncode == 0

        other = delivered(unlocked, file)
        assert [path for path, _ in hub.asked if "/revision/main" in path]
        assert other[0] != release
        assert other[1] == moved != commit
    finally:
        for home in homes:
            deliver(home, "down", "small")


def test_a_real_hubs_no_is_named(hub: HuggingFaceHub, root: Path) -> None:
    with pytest.raises(Refused, match="nowhere"):
        given(root, MODEL.model_copy(update={"revision": "nowhere"}))
    with pytest.raises(Refused, match="org/other"):
        given(root, MODEL.model_copy(update={"repo": "org/other"}))


@pytest.fixture
def way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[HuggingFaceHub, Network]]:
    with running_hub(tiny_model(tmp_path / "hub", size=6 * CHUNK)) as hub, network(hub.url) as between:
        monkeypatch.setenv("HF_ENDPOINT", between.url)
        yield hub, between


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "latency", "latency": 100, "jitter": 50},
        {"kind": "limit_data", "bytes": 3 << 20},
        {"kind": "bandwidth", "rate": 20_000},
    ],
    ids=lambda fault: str(fault["kind"]),
)
def test_a_bad_network_is_survived(way: tuple[HuggingFaceHub, Network], root: Path, fault: dict[str, object]) -> None:
    """Slow answers; every connection cut after 3 MiB; a narrow wire."""
    hub, between = way
    wanted = given(root, MODEL)
    between.fault(**fault)  # type: ignore[arg-type]
    whole(fetch(wanted), hub.files)


@pytest.mark.parametrize(
    "fault",
    [{"kind": "reset_peer", "timeout": 0}, {"kind": "timeout", "timeout": 0}],
    ids=lambda fault: str(fault["kind"]),
)
def test_a_network_that_gives_nothing_ends_the_fetch_and_once_healed_it_goes_on(
    way: tuple[HuggingFaceHub, Network], root: Path, fault: dict[str, object]
) -> None:
    """Every connection is reset, or stalls for ever."""
    hub, between = way
    snapshot = resolve_model(MODEL)
    between.fault(**fault)  # type: ignore[arg-type]
    with pytest.raises(Retryable, match="broke off"):
        fetch_into(MODEL, snapshot, model_folder(root, snapshot), Patience(stall=1, tries=2, longest_wait=0.1))
    assert models(root) == []
    between.heal()
    whole(fetch_into(MODEL, snapshot, model_folder(root, snapshot)), hub.files)


def test_a_network_that_is_dropped_on_the_way_and_comes_back_costs_little(
    way: tuple[HuggingFaceHub, Network], root: Path
) -> None:
    hub, between = way
    wanted = given(root, MODEL)
    between.fault("bandwidth", rate=4_000)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(fetch, wanted)
        while hub.sent < CHUNK:
            threading.Event().wait(0.01)
            assert not running.done()
        between.cut()
        between.heal()
        done = running.result(120)
    whole(done, hub.files)
    assert WEIGHTS in hub.files
