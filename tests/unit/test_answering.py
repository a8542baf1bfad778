"""An engine that says it is well and gives no token is told by `up`; one that is busy is
not.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.parts.ports import free_port
from tests.unit.test_cli import deliver

ENGINE = """
import json, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
here, port, name = Path(__file__).parent, int(sys.argv[1]), sys.argv[2]
(here / "hung").unlink(missing_ok=True)

class Handler(BaseHTTPRequestHandler):
    def say(self, text, status=200):
        self.send_response(status); self.end_headers(); self.wfile.write(text.encode())
    def do_GET(self):
        count = time.time_ns() if (here / "busy").exists() else 1
        self.say(f"vllm:generation_tokens_total{{}} {count}\\n" if self.path == "/metrics" else "{}")
    def do_POST(self):
        if any((here / flag).exists() for flag in ("silent", "busy", "hung")):
            time.sleep(60)
        text = '{"choices": [{"text": ""}]}'
        self.say("{}" if (here / "empty").exists() else text, 500 if (here / "broken").exists() else 200)
    def log_message(self, *_):
        pass

ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
TOML = """
name = "flag"
command = [{python!r}, "{{folder}}/engine.py", "{{port}}", "{{names}}"]
[ready]
timeout = "2s"
[stop]
drain = "0s"
grace = "1s"
[resources]
memory = "1Mi"
"""


@pytest.mark.parametrize(
    ("flag", "code", "told"),
    [
        ("none", 0, "small: unchanged"),
        ("silent", 1, "did not answer within 2 s, and did nothing for others meanwhile; started anew once, it did so"),
        ("hung", 0, "small: healed"),
        ("broken", 1, "answered with status 500"),
        ("empty", 1, "its answer has none: {}"),
        ("busy", 0, "small: unchanged"),
    ],
)
def test_up_of_what_serves_unchanged_asks_it_for_a_token(
    tmp_path: Path, model: Path, flag: str, code: int, told: str
) -> None:
    home, folder, file = tmp_path / "home", tmp_path / "engine", tmp_path / "spec.yaml"
    folder.mkdir()
    (folder / "engine.py").write_text(ENGINE)
    (folder / "engine.toml").write_text(TOML.format(python=sys.executable))
    file.write_text(
        f"apiVersion: model-delivery/v1\nname: small\nmodel: {{source: local, path: {model}}}\n"
        f"target: {{kind: process, engine: {folder}, port: {free_port()}}}\n"
        "gates: {smoke: null, throughput: null}\nrollout: {watch: 0s, standby: 0s}\n"
    )
    try:
        first = deliver(home, "up", str(file))
        assert first.returncode == 0, first.stderr
        well = deliver(home, "status", "small", "--probe")
        assert (well.returncode, "small: up" in well.stdout) == (0, True), well.stderr
        (folder / flag).touch()
        seen = deliver(home, "status", "small", "--probe", "--json")
        bad = flag not in ("none", "busy")
        assert (seen.returncode, "[release.silent]" in seen.stderr) == (int(bad), bad), seen.stderr
        assert bool(json.loads(seen.stdout)["silent"]) == bad
        assert deliver(home, "status", "small").returncode == 0
        again = deliver(home, "up", str(file))
        assert again.returncode == code, again.stderr
        assert told in again.stdout + again.stderr
        assert ("[release.silent]" in again.stderr) == bool(code)
        assert {file.name for file in home.glob("deliveries/small/silent/*/*")} == (
            {"engine.log", "metrics.prom"} if bad else set()
        )
    finally:
        assert deliver(home, "down", "small").returncode == 0
