"""``deliver fetch``, ``verify`` and ``gc``: what a person types, sees, and finds on the
disk.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model_delivery.models.manifest import MANIFEST
from tests.fetch.fetching import WEIGHTS
from tests.parts.hubs.huggingface import REPO, HuggingFaceHub, running_hub
from tests.parts.tiny_model import tiny_model


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HuggingFaceHub]:
    with running_hub(tiny_model(tmp_path / "hub", size=3_000_000)) as made:
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        yield made


def deliver(*args: object, code: int = 0, only_output: bool = False) -> str:
    """Standard output and error of the command; it must end with ``code`` and without a
    traceback.
    """
    done = subprocess.run(
        [sys.executable, "-m", "model_delivery.cli.main", *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout if only_output else done.stdout + done.stderr


def told(*args: object, code: int = 0) -> Any:
    return json.loads(deliver(*args, "--json", code=code, only_output=True))


def test_a_model_is_fetched_into_a_folder_and_verified_offline(hub: HuggingFaceHub, tmp_path: Path) -> None:
    folder = tmp_path / "there"
    said = deliver("fetch", f"huggingface:{REPO}@main", folder)
    size = sum(map(len, hub.files.values()))
    assert f"{folder}: 3 files, {size:,} bytes, verified; {size:,} bytes moved" in said
    assert "fetch: 100 % of 3 MB" in said
    hub.status, hub.busy_times = 500, -1
    assert "3 files" in deliver("verify", folder, "--deep")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub", "there"]


def test_a_hub_cannot_steer_a_terminal_or_forge_a_line_by_the_names_of_its_files(
    hub: HuggingFaceHub, tmp_path: Path
) -> None:
    hub.files["evil\x1b]0;owned\x07\x9b2J\n✗ forged.npy"] = b""
    said = deliver("fetch", f"huggingface:{REPO}@main", tmp_path / "there", "--include", "*", code=3)
    assert "source.pickle" in said
    assert [c for c in said if not c.isprintable() and c != "\n"] == []
    assert not any(line.startswith("✗ forged") for line in said.splitlines())


def test_a_second_fetch_moves_nothing(hub: HuggingFaceHub, tmp_path: Path) -> None:
    deliver("fetch", f"huggingface:{REPO}", tmp_path / "there")
    assert told("fetch", f"huggingface:{REPO}", tmp_path / "there")["fetched_bytes"] == 0


@pytest.mark.parametrize(
    ("damage", "deep", "message"),
    [
        (
            lambda folder: (folder / WEIGHTS).write_bytes(b"short"),
            False,
            "model.safetensors is 5 bytes long: it should have",
        ),
        (lambda folder: (folder / WEIGHTS).unlink(), False, "model.safetensors is missing"),
        (lambda folder: flip(folder / WEIGHTS), True, "model.safetensors was changed: its sha256 is another one"),
        (lambda folder: (folder / "more.py").write_text(""), False, "more.py is not in the manifest"),
        (lambda folder: flip(folder / MANIFEST), False, "has a broken manifest"),
        (lambda folder: (folder / MANIFEST).unlink(), False, "has no manifest"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(
    hub: HuggingFaceHub, tmp_path: Path, damage: object, deep: bool, message: str
) -> None:
    folder = tmp_path / "there"
    deliver("fetch", f"huggingface:{REPO}", folder)
    assert callable(damage)
    damage(folder)
    assert message in deliver("verify", folder, *(["--deep"] if deep else []), code=1)
    (finding,) = told("verify", folder, *(["--deep"] if deep else []), code=1)["findings"]
    assert message in f"{finding['what']}: {finding['why']}"
    deliver("fetch", f"huggingface:{REPO}", folder, code=2 if "more.py" in message else 0)


def flip(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)


def test_a_folder_with_other_files_is_left_alone(hub: HuggingFaceHub, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt.bak").write_text("years of work")
    said = deliver("fetch", f"huggingface:{REPO}", folder, code=2)
    assert "holds other files: they are not the model's" in said
    assert "thesis.txt.bak" in said
    assert [path.name for path in folder.iterdir()] == ["thesis.txt.bak"]
    (folder / "thesis.txt.bak").rename(folder / "config.json")
    assert "config.json" in deliver("fetch", f"huggingface:{REPO}", folder, code=2), (
        "another of that name is theirs too"
    )
    assert (folder / "config.json").read_text() == "years of work"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["org/model"], "names no model"),
        (["s3:bucket/model"], "known sources: huggingface, modelscope, git, local"),
        (["huggingface:"], "names no model"),
        ([f"huggingface:{REPO}", "--pin", "config.json=abc"], "pins"),
        ([f"huggingface:{REPO}", "--fallback", "local:x"], "fallback"),
        (["local:/nowhere/at/all"], "is no folder"),
    ],
)
def test_bad_arguments_are_named_and_nothing_is_made(tmp_path: Path, args: list[str], message: str) -> None:
    said = deliver("fetch", args[0], tmp_path / "there", *args[1:], code=3 if "local:/" in args[0] else 2)
    assert message in said
    assert not (tmp_path / "there").exists()


def test_a_folder_that_is_not_there_cannot_be_verified(tmp_path: Path) -> None:
    assert "is no folder" in deliver("verify", tmp_path / "nowhere", code=2)


def test_gc_removes_what_nobody_needs_and_says_so_before(hub: HuggingFaceHub, home: Path) -> None:
    store = home / "models" / "huggingface" / "org--model"
    deliver("fetch", f"huggingface:{REPO}", store / hub.commit)
    half = store / ("1" * 40)
    (half / ".model-delivery" / "free").mkdir(parents=True)
    (half / ".model-delivery" / "free" / "begun.part").write_bytes(bytes(1 << 20))
    (store / f".{'2' * 40}.doomed").mkdir()
    would = deliver("gc", "--dry-run")
    assert f"would remove {store / hub.commit}: " in would
    assert "no release needs it" in would
    assert f"{half}: 1,048,576 bytes, begun and never finished" in would
    assert "left by a run that has ended" in would
    assert half.is_dir()
    removed = deliver("gc")
    assert removed.replace("removed", "would remove").replace("bytes freed", "bytes would be freed") == would
    assert list(store.iterdir()) == []
    assert deliver("gc") == "nothing to remove\n"


@pytest.mark.parametrize(
    "model", ["huggingface:-x", "huggingface:-x/y", "modelscope:x", "modelscope:-x/y", "git:--upload-pack=x"]
)
def test_what_cannot_be_a_repositorys_name_is_a_wrong_argument(hub: HuggingFaceHub, tmp_path: Path, model: str) -> None:
    assert any(
        why in deliver("fetch", model, tmp_path / "there", code=2) for why in ("begin with a dash", "OWNER/NAME")
    )
    assert not (tmp_path / "there").exists()


def test_a_folder_that_cannot_be_made_is_a_wrong_argument(hub: HuggingFaceHub) -> None:
    assert "/proc/x cannot be written" in deliver("fetch", f"huggingface:{REPO}", "/proc/x", code=2)
