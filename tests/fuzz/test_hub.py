"""A hub that is broken or hostile: its list, its sizes, its redirects, its ranges, its
bytes.

A fetch ends in time, and where it says that all is well the listed bytes lie on the disk
and nothing else; what lies outside of the model's folder was never touched.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import close_session
from pydantic import TypeAdapter

from model_delivery.base import Trouble
from model_delivery.models.manifest import MANIFEST, model_folder
from model_delivery.models.sources import Model
from model_delivery.models.sources.http import HubModel
from model_delivery.models.store.commit import fetch
from model_delivery.models.store.part import CHUNK
from model_delivery.models.store.transfer import Patience
from model_delivery.models.verify import verify
from model_delivery.run.resolve import resolve_model
from model_delivery.values import Snapshot
from tests.fuzz.seeded import Dice, play, shares
from tests.parts.hubs import HubHandler, blob_id, files_of, huggingface, modelscope, serving
from tests.parts.hubs.huggingface import REPO, HuggingFaceHub
from tests.parts.tiny_model import tiny_model

DEADLINE = 60.0
IMPATIENT = Patience(stall=0.5, tries=2, longest_wait=0.05)
FACE = {"source": "huggingface", "repo": REPO, "revision": "main"}
SCOPE = {"source": "modelscope", "repo": REPO, "revision": "master"}
MODEL: TypeAdapter[Any] = TypeAdapter(Model)
LIBRARY = SimpleNamespace(
    **{**vars(time), "sleep": lambda seconds: time.sleep(seconds / 100)}
)  # its pauses: half a minute a list
WORDS: tuple[Any, ...] = (
    *(None, True, -1, 0, 1.5, 10**30, "5", "", "..", "../../victim", "/etc/passwd", "a\\b", "\0", "\ud800", "\u202e", "x" * 300, "é" * 200),
    *([], {}, [None], {"oid": None}, "0" * 64, "0" * 40, "z" * 64, "A" * 64, ".git/config", ".model-delivery.json", "CONFIG.JSON", "sub/model.safetensors"),
)  # fmt: skip
HEADERS = (
    *("Content-Range: bytes 0-1/2", "Content-Range: bytes */5", "Content-Range: x", "Content-Length: 5", "Content-Length: -1", "Content-Length: x"),
    *("Content-Length: 99999999999999", "Transfer-Encoding: chunked", "Content-Encoding: gzip", "Retry-After: 0", "Retry-After: -5", "Retry-After: \xb2"),
    *("Location: http://[", "Location: file:///etc/passwd", "Location: ftp://x/y", "Location: //", "Location: /", "Location: http://127.0.0.1:1/", "Location: \0"),
    *("X-Error-Code: GatedRepo", "X-Error-Code: \xff", "Link: <http://127.0.0.1:1/>; rel=next", "Link: <>; rel=next", "Connection: close", "no colon", "X: " + "y" * 70_000),
)  # fmt: skip
STATUSES = ("206 P", "204 N", "301 M", "302 F", "307 T", "308 P", "401 U", "403 F", "404 N", "416 R", "429 T", "500 E", "503 S", "999 X", "x", "")  # fmt: skip


@dataclass
class Hostile(HuggingFaceHub):
    """``spoils``: which answers, by a word in their path; ``seed``: how. Each answer has
    dice of its own, so that threads play the same every time.
    """

    seed: int = 0
    spoils: tuple[str, ...] = ()
    often: float = 1.0
    seen: Counter[str] = field(default_factory=Counter)

    def dice(self, path: str, what: str) -> Dice | None:
        with self.lock:
            self.seen[path + what] += 1
            dice = Dice(f"{self.seed} {path} {what} {self.seen[path + what]}")
        return dice if any(word in path for word in self.spoils) and dice.random() < self.often else None


class Spoiling(HubHandler):
    hub: Hostile

    def handle_one_request(self) -> None:
        real, self.wfile = self.wfile, io.BytesIO()
        try:
            super().handle_one_request()
            data = self.wfile.getvalue()
        finally:
            self.wfile = real
        dice = self.hub.dice(self.path, self.headers.get("Range", "")) if data else None
        try:
            for piece in spoilt(dice, data) if dice else [data]:
                self.wfile.write(piece)
        except OSError:
            self.close_connection = True
        self.close_connection |= dice is not None

    def answer_json(self, value: Any, status: int = 200) -> None:
        dice = self.hub.dice(self.path, "json")
        if dice and dice.random() < 0.8:
            value = another(dice, json.loads(json.dumps(value)))
        super().answer_json(value, status)


class HuggingFace(Spoiling, huggingface.Handler): ...  # type: ignore[misc]


class ModelScope(Spoiling, modelscope.Handler): ...


def another(dice: Dice, value: Any) -> Any:
    """The same list with something missing, doubled, or of another value."""
    here = value
    while isinstance(here, dict | list) and here:
        key = dice.choice(list(here) if isinstance(here, dict) else range(len(here)))
        match dice.randrange(8):
            case 0 if isinstance(here, list):
                here.append(here[key])
                break
            case 1:
                del here[key]
                break
            case 2:
                here[key] = dice.choice(WORDS)
                break
            case 3 if isinstance(here, list):
                here *= dice.choice((2, 3000))
                break
        if not isinstance(here[key], dict | list):
            here[key] = dice.choice(WORDS)
        here = here[key]
    return value


def spoilt(dice: Dice, data: bytes) -> Iterator[bytes]:
    """An answer's bytes as they arrive."""
    head, _, body = data.partition(b"\r\n\r\n")
    lines, at = head.decode("latin-1").split("\r\n"), dice.randrange(len(body) + 1)
    kind = dice.randrange(10)
    if kind < 4:
        lines[0] = f"HTTP/1.1 {dice.choice(STATUSES)}" if dice.random() < 0.6 else lines[0]
        lines += dice.sample(HEADERS, dice.choice((0, 1, 2)))
        dice.shuffle(dropped := lines[1:])
        lines = [lines[0], *dropped[dice.choice((0, 0, 1, 2)) :]]
        yield "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body
        return
    flipped = bytearray(body or b"\0")
    flipped[min(at, len(flipped) - 1)] ^= 1 << dice.randrange(8)
    bodies = {
        4: body[:at],
        5: bytes(flipped),
        6: body + b"more",
        7: body[at:] + body[:at],
        8: dice.randbytes(len(body)),
    }
    if kind in bodies:
        yield head + b"\r\n\r\n" + bodies[kind]
        return
    yield data[: dice.randrange(len(data) + 1)]
    if dice.random() < 0.2:
        time.sleep(2 * IMPATIENT.stall)
    elif dice.random() < 0.3:
        kept = "\r\n".join(line for line in lines if not line.lower().startswith("content-length"))
        yield kept.encode("latin-1") + b"\r\n\r\n"
        yield from itertools.repeat(b"x" * 65536, 4096)


@cache
def files(large: bool) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        made = files_of(tiny_model(Path(folder), size=CHUNK + 4096 if large else 16))
    return {**made, "sub/extra.json": b"{}"}


SPOILS = (
    *(("/revision/",), ("/tree/",), ("/tree/",), ("/resolve/",), ("/resolve/",), ("/signed/", "/resolve/")),
    *(("/repo/files",), ("/repo?",), ("/",)),
)


def one(dice: Dice, hub: Hostile, folder: Path) -> None:
    """Of Hugging Face or ModelScope; sometimes the other one is the fallback."""
    hub.seed, hub.seen = dice.randrange(1 << 30), Counter()
    hub.files, hub.often = files(dice.random() < 0.1), dice.choice((1.0, 0.5, 0.2))
    hub.spoils = dice.choice(SPOILS)
    hub.redirected, hub.whole_only = dice.random() < 0.3, dice.random() < 0.2
    first = SCOPE if "/repo" in hub.spoils[0] else FACE
    fallback = [SCOPE if first is FACE else FACE] if dice.random() < 0.3 else []
    model: HubModel = MODEL.validate_python({**first, "include": ["*"], "fallback": fallback})
    victim, root = folder / "victim", folder / "store"
    victim.mkdir()
    (victim / "mine").write_text("mine")
    for _ in range(dice.choice((1, 1, 2))):  # what a fetch left is gone on with
        attempt(model, root)
    assert {str(path.relative_to(folder)) for path in folder.iterdir()} <= {"victim", "store"}
    assert [path.name for path in victim.iterdir()] == ["mine"]


def attempt(model: HubModel, root: Path) -> None:
    try:
        snapshot = resolve_model(model)
        done = fetch(model, snapshot, model_folder(root, snapshot), IMPATIENT)
    except Trouble:
        for manifest in root.rglob(MANIFEST):
            assert verify(manifest.parent, deep=True) == [], "what was not fetched has a manifest"
    else:
        as_listed(Path(done.path), snapshot, came=done.fetched_bytes > 0)
    assert threading.active_count() < 200, "streams were left behind"


def as_listed(folder: Path, snapshot: Snapshot, *, came: bool) -> None:
    """git's sums are compared with what comes; what was there is known by its sha256."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    del found[MANIFEST]
    assert set(found) == {file.path for file in snapshot.files}
    for file in snapshot.files:
        body = found[file.path]
        assert len(body) == file.size
        if file.sha256:
            assert hashlib.sha256(body).hexdigest() == file.sha256
        elif came:
            assert blob_id(body) == file.git_sha1


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hostile]:
    """One that speaks as both."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.utils._http.time", LIBRARY)
    made = Hostile({})
    with serving(ModelScope, made):
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", made.url)
        with serving(HuggingFace, made):
            monkeypatch.setenv("HF_ENDPOINT", made.url)
            close_session()
            yield made


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seeds", shares(), ids=str)
def test_a_fetch_ends_in_time_and_brings_what_is_listed_or_nothing(
    seeds: range, hub: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_DELIVERY_HOME", str(tmp_path / "home"))

    def played(dice: Dice) -> None:
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            one(dice, hub, Path(folder))

    play(seeds, played, DEADLINE)
