"""A secret is one line, and whatever is told, written or kept holds none."""

from __future__ import annotations

import base64
import html
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import pytest

from model_delivery.base import (
    EnvSecret,
    FileSecret,
    Finding,
    KubeSecret,
    Progress,
    Refused,
    Secret,
    bearer,
    read_secret,
    scrub,
    short,
)
from model_delivery.diagnosis.engine_log import diagnose, last_line
from model_delivery.places.cluster.place import Cluster
from model_delivery.places.host.processes import tail
from tests.parts.ports import free_port
from tests.parts.raw_server import RawServer, answer
from tests.unit.test_cli import deliver, spec

KEY = "sk-TOPSECRET-0123456789"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def echoing() -> Iterator[str]:
    """A server that quotes the key it was given in every answer; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = json.dumps({"error": {"message": f"wrong key {self.headers.get('Authorization')}"}}).encode()
            self.send_response(401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def kept(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("value", [f"{KEY}\nsecond line", f"{KEY}\r", f"{KEY}\x07bell", f"{KEY}\x1b[0m"])
def test_a_key_of_several_lines_is_refused_and_stands_nowhere(home: Path, model: Path, value: str) -> None:
    key, port = home.parent / "key", free_port()
    key.write_text(f"{value}x\n")
    file = spec(home.parent, model, port, f"serving: {{api_key: {{file: {key}}}}}\n")
    done = deliver(home, "up", str(file))
    assert done.returncode == 3, done.stderr
    assert "secret.not-one-line" in done.stderr
    load = deliver(home, "loadtest", f"http://127.0.0.1:{port}", "--api-key-env", "K", K=f"{value}x")
    assert "secret.not-one-line" in load.stderr
    told = done.stdout + done.stderr + load.stdout + load.stderr + "".join(path.read_text() for path in kept(home))
    assert "TOPSECRET" not in told


def test_a_key_that_a_server_quotes_stands_in_no_report_and_reports_are_their_owners(home: Path, echoing: str) -> None:
    folder = home.parent / "out" / "report"
    common = ("--model", "m", "--api-key-env", "K", "--duration", "1s", "--warmup", "0s", "--users", "1")
    done = deliver(home, "loadtest", echoing, *common, "--report", str(folder), "--json", K=KEY)
    assert KEY not in done.stdout + done.stderr
    reports = [path for path in kept(folder) if path.parent == folder]
    assert {path.name for path in reports} >= {"report.json", "report.html"}
    assert {path.stat().st_mode & 0o777 for path in reports} == {0o600}
    assert folder.stat().st_mode & 0o777 == folder.parent.stat().st_mode & 0o777 == 0o700
    assert not [path for path in kept(folder) if KEY.encode() in path.read_bytes()]


def test_a_delivery_leaves_the_key_in_no_file(home: Path, model: Path) -> None:
    file = spec(home.parent, model, free_port(), "serving: {api_key: {env: K}}\n")
    try:
        assert deliver(home, "up", str(file), K=KEY).returncode == 0
        (report,) = home.glob("deliveries/small/reports/*/report.json")
        assert report.stat().st_mode & 0o777 == 0o600
        assert report.parent.stat().st_mode & 0o777 == 0o700
        assert not [path for path in kept(home) if KEY.encode() in path.read_bytes()]
    finally:
        assert deliver(home, "down", "small").returncode == 0


def test_what_was_read_is_scrubbed_however_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    key = "p\"ss'w&rd/ä"
    monkeypatch.setenv("K", key)
    read_secret(EnvSecret(env="K"))
    for text in (key, json.dumps(key), repr(key), f"https://me:{key}@hub/", "p%22ss%27w%26rd%2F%C3%A4"):
        told = Finding("x.y", text, text, text, (text,))
        assert "rd" not in str(told), told
        assert told.code == "x.y"
        assert "rd" not in Progress("step", text).line()
    with pytest.raises(Refused, match="no header can carry it") as refused:
        bearer(EnvSecret(env="K"))
    assert key not in refused.value.text


ODD = "sk-Ab_9/+ä.x:y=z"
WRITTEN = {
    "JSON, a character": ODD.replace("-", "\\u002d"),
    "JSON, every character": "".join(f"\\u{ord(c):04X}" for c in ODD),
    "JSON in JSON": json.dumps(json.dumps(ODD.replace("-", "\\u002D"))),
    "JSON of PHP": json.dumps(ODD).replace("/", "\\/"),
    "Python's bytes": repr(ODD.encode()),
    "an address, every character": "".join(f"%{octet:02x}" for octet in ODD.encode()),
    "an address, twice": quote(quote(ODD, safe=""), safe=""),
    "an address, small letters": quote(ODD).lower().replace("sk-ab", "sk-Ab"),
    "HTML, numbers": "".join(f"&#{ord(c)};" for c in ODD),
    "HTML, hexadecimal": "".join(f"&#x{ord(c):X};" for c in ODD),
    "HTML, names": ODD.replace("_", "&lowbar;").replace("/", "&sol;").replace("ä", "&auml;").replace(":", "&colon;"),
    "HTML, twice": html.escape(ODD.replace("-", "&#45;")),
}


@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)
def test_a_key_that_comes_back_escaped_is_scrubbed(written: str) -> None:
    Secret(ODD)
    told = scrub(f'the server says: "{written}" is wrong')
    assert re.sub(r"[\\\\\"']|b(?=')", "", told) == "the server says: *** is wrong"


@pytest.mark.parametrize("user", ["", ":", "a:", "me:", "you:", "<token>:"])
@pytest.mark.parametrize("after", ["", ":", "@hub", "\n"])
def test_a_key_that_comes_back_in_base64_is_scrubbed(user: str, after: str) -> None:
    Secret(ODD)
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = encode(f"{user}{ODD}{after}".encode()).decode()
        for told in (text, quote(text, safe=""), json.dumps({"Authorization": f"Basic {text}"})):
            assert "***" in scrub(told)
            assert text[8:20] not in scrub(told)


@pytest.mark.parametrize("of", ["\\\\", "&amp;", "%25", "\\\\u0000", "sk-"])
def test_a_text_that_is_made_of_escapes_is_scrubbed_at_once(of: str) -> None:
    Secret(ODD)
    started = time.process_time()
    scrub(of * 50_000)
    assert time.process_time() - started < 2


def test_what_only_looks_like_a_key_is_left_as_it_is() -> None:
    Secret(ODD)
    for text in (ODD[:-1], "100 % of \\n & more", ODD.upper(), base64.b64encode(b"another text").decode()):
        assert scrub(text) == text


@pytest.mark.parametrize(
    ("content", "code"),
    [(b" \n", "empty"), (b"\xff\xfe", "not-readable"), (b"a\0b", "not-one-line"), (None, "not-readable")],
)
def test_what_is_no_secret_is_refused_by_name(tmp_path: Path, content: bytes | None, code: str) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(Refused, match=f"secret.{code}"):
        read_secret(FileSecret(file=str(file)))


def test_a_secret_that_never_ends_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for file in ("/dev/zero", str(tmp_path / "fifo")):
        with pytest.raises(Refused, match="no regular file"):
            read_secret(FileSecret(file=file))


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", "empty"), (None, "empty"), (b" \n", "empty"), (b"\xff\xfe", "not-readable"), (b"sk-1\n", "padded"), ("sk-1\u00a0".encode(), "padded")],
)  # fmt: skip
def test_a_key_of_a_cluster_is_refused_that_an_engine_would_read_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, code: str
) -> None:
    data = {"key": None if content is None else base64.b64encode(content).decode()}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "api"}, "data": data}
    with RawServer(
        {"/api/v1/namespaces/ns/secrets/api": answer(secret, "200 OK", "Content-Type: application/json")}
    ) as api:
        named = {"clusters": {"server": api.url}, "users": {}, "contexts": {"cluster": "c", "user": "c"}}
        config = {kind: [{"name": "c", kind[:-1]: what}] for kind, what in named.items()}
        file = tmp_path / "kubeconfig"
        file.write_text(json.dumps({"apiVersion": "v1", "kind": "Config", "current-context": "c", **config}))
        monkeypatch.setenv("KUBECONFIG", str(file))
        with pytest.raises(Refused, match=f"secret.{code}"):
            Cluster("c", "ns").secret(KubeSecret.model_validate({"kube": {"name": "api", "key": "key"}}))


LONG = "sk-" + "A1b2" * 16


@pytest.mark.parametrize("before", range(120, 330, 7))
def test_no_piece_of_a_key_is_left_where_a_log_is_cut(before: int) -> None:
    Secret(LONG)
    last = f"ValueError: {'x' * before} api_key={LONG}"
    for log in (last, f"Traceback (most recent call last):\n{last}", "x" * (1990 - before) + f" {last} failed"):
        found = diagnose(log, 1).finding
        assert "sk-A" not in f"{found}"
        assert "A1b2" not in f"{found} {last_line(f'{LONG} {log[:before]}')}"


@pytest.mark.parametrize("most", [100, 300, 16000])
@pytest.mark.parametrize("more", ["", "y" * 30_000, LONG * 1000])
def test_no_piece_of_a_key_is_left_where_any_text_is_cut(most: int, more: str) -> None:
    Secret(LONG)
    for at in range(most - len(LONG) - 5, most + 5, 3):
        for written in (LONG, json.dumps(LONG.replace("-", "\\u002d"))):
            assert not re.search(r"A1|b2", short("x" * at + written + more, most))
            assert not re.search(r"A1|b2", short(more + written + "x" * at, -most))


def test_no_piece_of_a_key_is_left_where_the_tail_of_a_log_begins(tmp_path: Path) -> None:
    Secret(LONG)
    log = tmp_path / "log"
    for at in range(65530, 65530 + 5000, 29):
        log.write_text(f"before {LONG} {'y' * at}")
        assert not re.search(r"A1|b2", tail(log))
        assert len(tail(log)) > 65000
