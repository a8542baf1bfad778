"""A release is locked into a file, and made again from it: elsewhere, or later; what
differs is refused by name.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.parts.ports import free_port
from tests.unit.test_answering import engine, spec
from tests.unit.test_cli import deliver


def serving(home: Path) -> dict[str, Any]:
    return dict(json.loads(deliver(home, "status", "small", "--json").stdout))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """``lock.yaml`` of a release that served there, its model and its engine."""
    base = tmp_path_factory.mktemp("locked")
    here, own = base / "here", shutil.copytree(model, base / "model")
    engine(base)
    assert deliver(here, "up", str(spec(base, own, free_port(), "--first"))).returncode == 0
    try:
        made = deliver(here, "lock", "small")
        assert made.returncode == 0, made.stderr
        (base / "lock.yaml").write_text(made.stdout)
        assert deliver(here, "up", str(base / "lock.yaml")).stdout.startswith("small: unchanged")
        (base / "release").write_text(serving(here)["serving"])
    finally:
        assert deliver(here, "down", "small").returncode == 0
    return base


@pytest.fixture
def kept(base: Path, tmp_path: Path) -> Iterator[Path]:
    """``base``, which is put right afterwards."""
    for part in ("model", "engine"):
        shutil.copytree(base / part, tmp_path / part)
    yield base
    for part in ("model", "engine"):
        shutil.copytree(tmp_path / part, base / part, dirs_exist_ok=True)


def test_a_lock_makes_the_same_release_elsewhere_and_an_earlier_one_comes_again(base: Path, tmp_path: Path) -> None:
    there, release, locked = tmp_path / "there", (base / "release").read_text(), base / "lock.yaml"
    try:
        made = deliver(there, "up", str(locked))
        assert made.returncode == 0, made.stderr
        assert serving(there)["serving"] == release
        now = yaml.safe_load(locked.read_text()) | {"lock": None}
        now["serving"]["args"] = ["--second"]
        file = tmp_path / "now.yaml"
        file.write_text(yaml.safe_dump(now))
        assert deliver(there, "up", str(file)).returncode == 0
        assert serving(there)["serving"] != release
        back = deliver(there, "up", str(file), "--release", release)
        assert back.returncode == 0, back.stderr
        assert f"small: promoted (release {release})" in back.stdout
        for name in ("0123456789", "../Record/record"):
            nobody = deliver(there, "up", str(file), "--release", name)
            assert (nobody.returncode, "[release.unknown]" in nobody.stderr) == (3, True)
    finally:
        assert deliver(there, "down", "small").returncode == 0


def changed_model(folder: Path, lock: dict[str, Any]) -> None:
    (folder / "model" / "config.json").write_text('{"model_type": "other"}')


def changed_engine(folder: Path, lock: dict[str, Any]) -> None:
    file = folder / "engine" / "engine.toml"
    file.write_text(file.read_text().replace('timeout = "2s"', 'timeout = "3s"'))


def leads_out(folder: Path, lock: dict[str, Any]) -> None:
    lock["lock"]["snapshot"]["files"].append({"path": "../../outside.json", "size": 1, "sha256": 64 * "0"})


def unsummed(folder: Path, lock: dict[str, Any]) -> None:
    for name in ("sha256", "git_sha1"):
        lock["lock"]["snapshot"]["files"][0].pop(name, None)


def of_another_model(folder: Path, lock: dict[str, Any]) -> None:
    lock["lock"]["snapshot"]["key"] = "another"


def with_an_engine_of_its_own(folder: Path, lock: dict[str, Any]) -> None:
    lock["lock"]["engine"]["command"] = ["/bin/sh", "-c", f"touch {folder}/hostile"]


@pytest.mark.parametrize(
    ("spoil", "code", "told"),
    [
        (changed_model, 1, "config.json"),
        (changed_engine, 3, "[engine.other-lock]"),
        (leads_out, 2, "it would leave its folder"),
        (unsummed, 2, "could not be verified"),
        (of_another_model, 2, "it is of another model"),
        (with_an_engine_of_its_own, 3, "[engine.other-lock]"),
    ],
)
def test_what_differs_is_refused(kept: Path, tmp_path: Path, spoil: Any, code: int, told: str) -> None:
    lock, file, there = yaml.safe_load((kept / "lock.yaml").read_text()), tmp_path / "lock.yaml", tmp_path / "there"
    spoil(kept, lock)
    file.write_text(yaml.safe_dump(lock))
    refused = deliver(there, "up", str(file))
    assert (refused.returncode, told in refused.stderr) == (code, True), refused.stderr
    assert not (kept / "hostile").exists()
    assert not [*there.glob("deliveries/*/objects/Engine/*")]
    assert code != 2 or not there.exists()
