"""A model in a folder: trusted where a manifest speaks for it, hashed once where none
does, copied and never linked.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from model_delivery.base import Permanent, Progress, Refused, sink
from model_delivery.models.sources.local import LocalModel
from model_delivery.run.resolve import resolve_model
from model_delivery.steps.fetch import run as fetch
from tests.fetch.fetching import WEIGHTS, given, models, whole
from tests.parts.hubs import files_of
from tests.parts.tiny_model import tiny_model

LARGE = 300 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "mine", size=3_000_000)


def model(folder: Path, **more: object) -> LocalModel:
    return LocalModel.model_validate({"source": "local", "path": str(folder), **more})


def test_it_is_copied_and_a_later_edit_does_not_reach_the_store(folder: Path, root: Path) -> None:
    files = files_of(folder)
    done = fetch(given(root, model(folder)))
    whole(done, files)
    with (folder / WEIGHTS).open("r+b") as edited:
        edited.seek(100)
        edited.write(b"edited in place")
    whole(done, files)
    again = fetch(given(root, model(folder)))
    assert again.path != done.path
    whole(again, files_of(folder))


def test_a_file_is_hashed_once_and_again_when_it_changed(folder: Path, home: Path) -> None:
    home.mkdir()
    tiny_model(folder, size=LARGE)
    heard: list[Progress] = []
    with sink(heard.append):
        first = resolve_model(model(folder))
        assert [news.note for news in heard] == [f"hashing {WEIGHTS}"]
        assert resolve_model(model(folder)) == first
        assert len(heard) == 1
        with (folder / WEIGHTS).open("r+b") as edited:
            edited.seek(LARGE // 2)
            edited.write(b"x")
        os.utime(folder / WEIGHTS, ns=(0, 0))
        assert resolve_model(model(folder)) != first
        assert len(heard) == 2


def test_the_sums_of_a_manifest_are_trusted_until_the_copy(folder: Path, root: Path) -> None:
    lines = [f"{hashlib.sha256(body).hexdigest()}  {name}" for name, body in files_of(folder).items()]
    wanted = given(root, model(folder, manifest="\n".join(lines)))
    with (folder / WEIGHTS).open("r+b") as edited:
        edited.seek(-1, os.SEEK_END)
        edited.write(b"\1")
    with pytest.raises(Permanent, match=r"model\.safetensors is not what was listed"):
        fetch(wanted)
    assert models(root) == []


def test_a_file_that_a_manifest_names_and_the_folder_lacks_is_refused(folder: Path) -> None:
    with pytest.raises(Refused, match=r"does not hold what model\.manifest says: missing: gone\.safetensors"):
        resolve_model(model(folder, manifest=f"{'0' * 64}  gone.safetensors\n"))


def test_a_folder_that_we_fetched_is_known_by_its_own_manifest(folder: Path, root: Path, tmp_path: Path) -> None:
    done = fetch(given(root, model(folder)))
    shutil.copytree(done.path, tmp_path / "usb-stick")
    with sink(lambda news: pytest.fail(f"{news} was hashed")):
        snapshot = resolve_model(model(tmp_path / "usb-stick"))
    assert {f.path: f.sha256 for f in snapshot.files} == {
        n: hashlib.sha256(b).hexdigest() for n, b in files_of(folder).items()
    }


def test_a_link_that_leads_out_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "generation_config.json").symlink_to("/etc/hostname")
    with pytest.raises(Refused, match="leads out of the model's folder"):
        resolve_model(model(folder))


def test_a_file_that_shrinks_while_it_is_copied_is_caught(folder: Path, root: Path) -> None:
    wanted = given(root, model(folder))
    with (folder / WEIGHTS).open("r+b") as cut:
        cut.truncate(1000)
    with pytest.raises(Permanent, match=r"model\.safetensors is not what was listed"):
        fetch(wanted)
    assert models(root) == []
