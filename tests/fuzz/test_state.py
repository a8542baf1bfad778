"""A home whose files a crash, a full disk or a hand has spoilt: every verb that looks
says what it knows or which file it cannot read; nothing is touched, and what is cut is
never read as something else.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from model_delivery.cli.main import main
from model_delivery.models.manifest import MANIFEST
from tests.compatibility import restore
from tests.fuzz.seeded import Dice, play, shares
from tests.parts.ports import free_port

DEADLINE = 15.0
NAME, OTHER, OLD_PORT = "crash", "other", b"28100"
CASES = ("killed-canary-load", "killed-promote", "first-refused", "rolled-back", "standby-overdue", "second", "up")
WORDS: tuple[Any, ...] = (None, True, -1, 0, 1e308, float("nan"), 10**400, "", "\0", "\ud800", "[/]", "../..", "/dev/zero", [], {}, [None], {"a": 1})  # fmt: skip
OWN = ("name", "url", "serving", "previous", "candidate", "phase", "stages", "standby_until", "held")
PLANNED = ("name", "release", "commit", "files", "bytes")
KNOWN_LESS: tuple[Any, ...] = (None, [], ())


@dataclass
class Said:
    """What a user sees: the exit code, and the JSON."""

    code: int
    value: Any


def says(*words: str, as_json: bool = True) -> Said:
    """AssertionError with the traceback where the house broke."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["deliver", *words, *(["--json"] * as_json)])
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    assert "[cli.fault]" not in err.getvalue(), f"{words}: {err.getvalue()}{_fault(err.getvalue())}"
    assert code == 0 or "✗" in err.getvalue() or "Error" in err.getvalue(), f"{words}: exit code {code}, and no word"
    return Said(code, json.loads(out.getvalue()) if as_json and out.getvalue() else None)


def _fault(told: str) -> str:
    file = Path(told.partition("report it with ")[2].strip())
    return file.read_text(encoding="utf-8")[-2000:] if file.is_file() else ""


@dataclass
class Home:
    """Of two deliveries, one of which is spoilt; ``before``: what was said of both when
    all was well.
    """

    path: Path
    spec: Path

    @cached_property
    def before(self) -> Mapping[str, Any]:
        verbs = {verb: says(verb, NAME) for verb in ("status", "history", "connect")}
        verbs |= {"plan": says("plan", str(self.spec)), "gc": says("gc", "--dry-run"), "list": says("list")}
        assert not [verb for verb, said in verbs.items() if said.code and verb != "connect"]
        return {verb: said.value for verb, said in verbs.items()} | {OTHER: says("status", OTHER).value}

    @cached_property
    def files(self) -> list[list[Path]]:
        """Of the delivery, the store and the home itself; those of a kind together."""
        kinds: dict[str, list[Path]] = {}
        for path in (path for path in sorted(self.path.rglob("*")) if path.is_file()):
            name = path.relative_to(self.path).as_posix()
            if name != "lock" and not name.startswith(f"deliveries/{OTHER}/"):  # that one stands for all
                kinds.setdefault(re.sub(r"[0-9a-f]{10,}|[0-9]+", "N", name), []).append(path)
        return list(kinds.values())

    def content(self) -> dict[str, bytes]:
        """Of every file that a look has no business with; sums of local models are kept
        by whoever reads them.
        """
        every = (path for path in self.path.rglob("*") if path.is_file() and path.parent.name != "hashes")
        return {str(path): path.read_bytes() for path in every if path.name != "lock"}


def made(folder: Path, case: str) -> Home:
    """The case's home, and beside it a delivery that is well."""
    home = Home(folder / "home", folder / "spec.yaml")
    restore.host(case, home.path)
    home.spec.write_bytes(restore.kept()[f"host/{case}/spec.yaml"])
    restore.host("up", folder / "up")
    beside = home.path / "deliveries" / OTHER
    shutil.copytree(folder / "up" / "deliveries" / NAME, beside)
    for file in (path for path in beside.rglob("*") if path.is_file()):
        text = file.read_text(encoding="utf-8").replace(str(folder / "up"), str(home.path))
        text = text.replace(f'"delivery": "{NAME}"', f'"delivery": "{OTHER}"').replace(
            f"deliveries/{NAME}/", f"deliveries/{OTHER}/"
        )
        file.write_text(text, encoding="utf-8")
    port = str(free_port()).encode()  # the old ones' is one that any other test may listen on
    for file in (home.spec, *(path for path in home.path.rglob("*") if path.is_file())):
        file.write_bytes(file.read_bytes().replace(OLD_PORT, port))
    return home


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> list[Home]:
    restore.engine_and_model()
    return [made(tmp_path_factory.mktemp(case), case) for case in CASES]


def spoilt(dice: Dice, text: bytes) -> tuple[bytes | None, bool]:
    """What is left of a file (None: a folder in its place), and whether it was only
    cut.
    """
    at = dice.randrange(len(text) + 1)
    match dice.randrange(10):
        case 0 | 1 | 2 | 8:
            return text[:at], True
        case 3:
            return text[:at] + bytes(len(text) - at), True
        case 4:
            return text[:at] + text[at + 1 :], False
        case 5:
            return text[:at] + dice.randbytes(dice.choice((1, 8, 5000))) + text[at:], False
        case 6:
            return dice.choice((b"null", b"[]", b'"x"', b"{}", b"[" * 100_000, b'{"a":' * 100_000)), False
        case 7:
            return None, False
    return _another_value(dice, text), False


def _another_value(dice: Dice, text: bytes) -> bytes:
    try:
        tree = json.loads(text)
    except ValueError:
        return text[::-1]
    here = tree
    while isinstance(here, dict | list) and here:
        key = dice.choice(list(here) if isinstance(here, dict) else range(len(here)))
        if not isinstance(here[key], dict | list) or dice.random() < 0.3:
            here[key] = dice.choice(WORDS)
            break
        here = here[key]
    return json.dumps(tree).encode(errors="surrogatepass")


def one(dice: Dice, homes: list[Home], patch: pytest.MonkeyPatch) -> None:
    home = dice.choice(homes)
    patch.setenv("MODEL_DELIVERY_HOME", str(home.path))
    before, file = home.before, dice.choice(dice.choice(home.files))
    whole = file.read_bytes()
    left, cut = spoilt(dice, whole)
    file.unlink()
    if left is None:
        file.mkdir()
    else:
        file.write_bytes(left)
    try:
        look(dice, home, file, before if cut else None)
    except Exception as error:
        raise AssertionError(f"{file.relative_to(home.path)} is {left if left is None else left[:200]!r}") from error
    finally:
        if file.is_dir():
            file.rmdir()
        for fault in home.path.glob("fault-*"):
            fault.unlink()
        file.write_bytes(whole)


def look(dice: Dice, home: Home, file: Path, before: Mapping[str, Any] | None) -> None:
    there = home.content()
    assert says("status", OTHER).value == home.before[OTHER]
    assert home.before[OTHER] in listed(says("list").value), "the other delivery is not listed"
    told = {verb: says(verb, NAME) for verb in dice.sample(("status", "history", "connect"), 2)}
    told |= {"plan": says("plan", str(home.spec)), "gc": says("gc", "--dry-run")}
    says(*dice.choice((("list",), ("status", NAME), ("history", NAME), ("logs", NAME))), as_json=False)
    says(
        "verify", str(file.parent if MANIFEST in (path.name for path in file.parent.iterdir()) else home.path), "--deep"
    )
    assert home.content() == there, "a look has changed what it looked at"
    for verb, said in told.items():
        if before and said.code == 0:
            nothing_else(verb, said.value, before[verb])


def listed(value: Any) -> list[Any]:
    return list(value["deliveries"] if isinstance(value, dict) else value or ())


def nothing_else(verb: str, now: Any, before: Any) -> None:
    """Of a file that was cut something may be unknown, nothing another."""
    match verb:
        case "status":
            assert {key: now[key] for key in OWN} == {key: before[key] for key in OWN}
            for row, was in zip(now["running"], before["running"], strict=True):
                less = {key for key in row if row[key] != was[key]} - {"state", "detail"}
                assert all(row[key] in KNOWN_LESS for key in less), (row, was)
        case "plan":
            assert {key: now[key] for key in PLANNED} == {key: before[key] for key in PLANNED}
        case "gc":
            paths = {item["path"] for item in before}
            assert {item["path"] for item in now} <= paths, "what a release needs is called garbage"
        case _:
            assert now == before


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seeds", shares(), ids=str)
def test_a_spoilt_home_is_told_and_never_read_as_another(
    seeds: range, homes: list[Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    play(seeds, lambda dice: one(dice, homes, monkeypatch), DEADLINE)


ABSURD = (1e300, -1, float("nan"), 10**400)


def numbers(tree: Any, at: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where each number of a file is: its place without the numbers of lists, what holds
    it, its key.
    """
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        here = f"{at}.{key if isinstance(tree, dict) else ''}"
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield here, tree, key
        else:
            yield from numbers(value, here)


@pytest.mark.timeout(600)
def test_a_number_that_nobody_wrote_is_told_by_name(homes: list[Home], monkeypatch: pytest.MonkeyPatch) -> None:
    home, tried = homes[CASES.index("standby-overdue")], set[str]()
    monkeypatch.setenv("MODEL_DELIVERY_HOME", str(home.path))
    for file in sorted(home.path.glob(f"deliveries/{NAME}/**/*.json")):
        whole = file.read_bytes()
        tree = json.loads(whole)
        for place, owner, key in numbers(tree):
            if (kind := f"{file.parent.name} {place}") in tried:
                continue
            tried.add(kind)
            before = owner[key]
            for number in ABSURD:
                owner[key] = number
                file.write_text(json.dumps(tree))
                says("status", NAME, as_json=False)
                says("history", NAME, as_json=False)
            owner[key] = before
        file.write_bytes(whole)
    assert len(tried) > 10
