"""An engine that says it is well and gives no token is told by `up`; one that is busy is
not.
"""

from __future__ import annotations

import json
import re
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
asked = 0
(here / "hung").unlink(missing_ok=True)

class Handler(BaseHTTPRequestHandler):
    def say(self, text, status=200):
        self.send_response(status); self.end_headers(); self.wfile.write(text.encode())
    def do_GET(self):
        global asked
        asked += len(sys.argv) > 3 and self.path == "/metrics"
        count = time.time_ns() if (here / "busy").exists() else 1
        reasons = {"stop": 100 * asked, "error": 10 * asked if "--sick" in sys.argv else 0}
        late = 20 if "--slow" in sys.argv else 0
        waits = {"0.1": 100 - late, "0.25": 100 - late, "+Inf": 100}
        held = time.time_ns() / 2**63 if (here / "reading").exists() else 0.0
        lines = [f"vllm:generation_tokens_total{{}} {count}", f"vllm:kv_cache_usage_perc{{}} {held}"]
        lines += [f'vllm:request_success_total{{finished_reason="{name}"}} {n}' for name, n in reasons.items()]
        lines += [f'vllm:time_to_first_token_seconds_bucket{{le="{le}"}} {asked * n}' for le, n in waits.items()]
        self.say("\\n".join(lines) + "\\n" if self.path == "/metrics" else "{}")
    def do_POST(self):
        if any((here / flag).exists() for flag in ("silent", "busy", "reading", "hung")):
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


def engine(folder: Path) -> Path:
    made = folder / "engine"
    made.mkdir()
    (made / "engine.py").write_text(ENGINE)
    (made / "engine.toml").write_text(TOML.format(python=sys.executable))
    return made


def spec(folder: Path, model: Path, port: int, *args: str, rollout: str = "watch: 0s, standby: 0s") -> Path:
    file = folder / "spec.yaml"
    file.write_text(
        f"apiVersion: model-delivery/v1\nname: small\nmodel: {{source: local, path: {model}}}\n"
        f"serving: {{args: {json.dumps(args)}}}\n"
        f"target: {{kind: process, engine: {folder / 'engine'}, port: {port}}}\n"
        f"gates: {{smoke: null, throughput: null}}\nrollout: {{{rollout}}}\n"
    )
    return file


@pytest.mark.parametrize(
    ("flag", "code", "told"),
    [
        ("none", 0, "small: unchanged"),
        ("silent", 1, "did not answer within 2 s, and did nothing for others meanwhile; started anew once, it did so"),
        ("hung", 0, "small: healed"),
        ("broken", 1, "answered with status 500"),
        ("empty", 1, "its answer has none: {}"),
        ("busy", 0, "small: unchanged"),
        ("reading", 0, "small: unchanged"),
    ],
)
def test_up_of_what_serves_unchanged_asks_it_for_a_token(
    tmp_path: Path, model: Path, flag: str, code: int, told: str
) -> None:
    home, folder, port = tmp_path / "home", engine(tmp_path), free_port()
    file = spec(tmp_path, model, port)
    try:
        first = deliver(home, "up", str(file))
        assert first.returncode == 0, first.stderr
        well = deliver(home, "status", "small", "--probe", "--json")
        assert (well.returncode, json.loads(well.stdout)["state"]) == (0, "up"), well.stderr
        (folder / flag).touch()
        seen = deliver(home, "status", "small", "--probe", "--json")
        bad = flag not in ("none", "busy", "reading")
        assert (seen.returncode, "[release.silent]" in seen.stderr) == (int(bad), bad), seen.stderr
        assert bool(json.loads(seen.stdout)["silent"]) == bad
        assert deliver(home, "status", "small").returncode == 0
        again = deliver(home, "up", str(file))
        assert again.returncode == code, again.stderr
        assert told in again.stdout + again.stderr
        assert ("[release.silent]" in again.stderr) == bool(code)
        assert {file.name for file in home.glob("deliveries/small/silent/*/*")} == (
            {"engine.log", "metrics.prom", "stacks.txt"} if bad else set()
        )
        stood = [file.read_text() for file in home.glob("deliveries/small/silent/*/stacks.txt")]
        assert all("serve_forever" in text for text in stood), stood
    finally:
        assert deliver(home, "down", "small").returncode == 0


CANARY = "strategy: canary, steps: [50], soak: 1s, watch: 1s"
LATE = r"its TTFT was longer than 0.25 s in \d+ of \d+, the other release's no longer than 0.1 s in 95 of 100"
ERRORS = r"\d+ of its \d+ requests ended in an error of the server"


@pytest.mark.parametrize(
    ("rollout", "fault", "code", "told"),
    [
        (CANARY, "--sick", 4, ERRORS),
        (CANARY, "--slow", 4, LATE),
        ("strategy: blue-green, watch: 1s", "--sick", 4, ERRORS),
        ("strategy: blue-green, watch: 1s", "--slow", 0, r"still ready, \d+ requests, 0 of them in errors"),
    ],
)
def test_a_release_that_does_worse_for_its_users_gives_the_traffic_back(
    tmp_path: Path, model: Path, rollout: str, fault: str, code: int, told: str
) -> None:
    home, _, port = tmp_path / "home", engine(tmp_path), free_port()
    try:
        assert deliver(home, "up", str(spec(tmp_path, model, port, "--first"))).returncode == 0
        first = json.loads(deliver(home, "status", "small", "--json").stdout)["serving"]
        tried = deliver(home, "up", str(spec(tmp_path, model, port, fault, rollout=rollout)))
        assert tried.returncode == code, tried.stderr
        assert re.search(told, " ".join((tried.stdout + tried.stderr).split()))
        assert ("[gate.degraded-while-watched]" in tried.stderr) == bool(code)
        serves = json.loads(deliver(home, "status", "small", "--json").stdout)["serving"]
        assert (serves == first) == bool(code)
    finally:
        assert deliver(home, "down", "small").returncode == 0
