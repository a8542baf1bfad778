"""The state folder as a user meets it: damaged, impossible, not named; and where faults
and reports may be written.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from model_delivery.base import BadInput, default_home
from model_delivery.cli.main import unexpected
from model_delivery.places.host.place import Host
from model_delivery.run.session import opened
from tests.parts.keys import key
from tests.parts.ports import free_port
from tests.unit.test_cli import deliver, home, spec

__all__ = ["home"]


def test_a_file_of_the_state_that_was_damaged_is_named(home: Path, model: Path) -> None:
    file = spec(home.parent, model, free_port())
    assert deliver(home, "up", str(file)).returncode == 0
    try:
        assert str(model) not in deliver(home, "gc", "--dry-run").stdout, "what serves stays"
        record = home / "deliveries" / "small" / "objects" / "Record" / "record.json"
        whole = record.read_bytes()
        for damaged in (whole[: len(whole) // 2], b"\xff\0", b"[]"):
            record.write_bytes(damaged)
            for verb in (("status", "small"), ("list",), ("plan", str(file))):
                done = deliver(home, *verb)
                assert (done.returncode, "host.unreadable-file" in done.stderr) == (1, True), (verb, done.stderr)
                assert str(record) in done.stderr
        record.unlink()
        os.mkfifo(record)
        assert "host.unreadable-file" in deliver(home, "status", "small").stderr, "a pipe is not waited for"
        record.unlink()
        record.write_bytes(whole)
    finally:
        assert deliver(home, "down", "small").returncode == 0


def test_of_a_damaged_delivery_list_says_so_and_lists_the_others(home: Path) -> None:
    for name in ("broken", "small"):
        with opened(Host(home), name, key(kind="process", port=8000), request="1") as session:
            session.write(replace(session.record, replicas=2))
    broken = home / "deliveries" / "broken" / "objects" / "Record" / "record.json"
    for damaged in ("{}", "", "[]"):
        broken.write_text(damaged)
        done = deliver(home, "list", "--json")
        assert (done.returncode, "Traceback" in done.stderr) == (1, False)
        assert f"broken: {broken} cannot be read" in done.stderr
        said = json.loads(done.stdout)
        assert [row["name"] for row in said["deliveries"]] == ["small"]
        assert said["error"]["code"] == "host.unreadable-file"


def test_a_delivery_whose_release_is_damaged_can_be_taken_down(home: Path, model: Path) -> None:
    assert deliver(home, "up", str(spec(home.parent, model, free_port()))).returncode == 0
    (release,) = (home / "deliveries" / "small" / "objects" / "Release").iterdir()
    release.write_bytes(b"{")
    done = deliver(home, "status", "small")
    assert (done.returncode, f"{release} cannot be read" in done.stderr) == (1, True), done.stderr
    done = deliver(home, "down", "small")
    assert done.returncode == 0, done.stderr
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(home) in " ".join(p.info["cmdline"] or ())]
    assert release.read_bytes() == b"{"


@pytest.mark.parametrize("verb", ["list", "plan", "up"])
@pytest.mark.parametrize("where", ["/proc/x", "/dev/null/x"])
def test_a_home_that_cannot_be_is_refused_whatever_is_asked(home: Path, model: Path, verb: str, where: str) -> None:
    file = spec(home.parent, model, free_port())
    done = deliver(home, verb, *([] if verb == "list" else [str(file)]), MODEL_DELIVERY_HOME=where)
    assert done.returncode == 3
    assert f"the state folder {where} cannot be used" in done.stderr
    assert "Traceback" not in done.stderr


def test_reports_go_into_no_file_and_nothing_is_done_before_that_is_told(home: Path) -> None:
    file = home.parent / "file"
    file.touch()
    for target in (file, file / "below", Path("/proc/x")):
        for verb in (("history", "small", "--reports"), ("loadtest", "http://127.0.0.1:9", "--report")):
            done = deliver(home, *verb, str(target))
            assert done.returncode == 2, done.stderr
            assert f"nothing can be written into {target}" in done.stderr
    assert not home.exists()


def test_without_a_home_the_state_folder_that_is_named_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user whom the system does not know, as OpenShift's."""

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setenv("MODEL_DELIVERY_HOME", str(tmp_path / "home"))
    for name in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert default_home() == tmp_path / "home"
    monkeypatch.delenv("MODEL_DELIVERY_HOME")
    with pytest.raises(BadInput, match=r"MODEL_DELIVERY_HOME"):
        default_home()
    assert unexpected(RuntimeError("odd")).code == "cli.fault"


def test_a_fault_is_written_into_no_file_that_somebody_laid_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, temporary = tmp_path / "victim", tmp_path / "tmp"
    victim.write_text("mine")
    temporary.mkdir()
    for ahead in range(60):
        name = time.strftime("fault-%Y%m%d-%H%M%S.log", time.localtime(time.time() + ahead))
        (temporary / name).symlink_to(victim)
    monkeypatch.setenv("MODEL_DELIVERY_HOME", "/proc/x")
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    told = unexpected(RuntimeError("odd"))
    assert victim.read_text() == "mine"
    (log,) = (path for path in temporary.iterdir() if not path.is_symlink())
    assert str(log) in told.fix
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_stranger_on_the_port_of_a_dead_delivery_is_told_by_status_and_list(home: Path, model: Path) -> None:
    port = free_port()
    file = spec(home.parent, model, port)
    assert deliver(home, "up", str(file)).returncode == 0
    for state in home.glob("deliveries/small/processes/*/state.json"):
        process = psutil.Process(json.loads(state.read_text())["pid"])
        process.kill()
        process.wait(10)
    with socket.create_server(("127.0.0.1", port)):
        for verb in (("status", "small"), ("list",)):
            done = deliver(home, *verb)
            assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
        assert f"something else listens on 127.0.0.1:{port}" in deliver(home, "status", "small").stdout
    assert deliver(home, "down", "small").returncode == 0


@pytest.mark.root
@pytest.mark.parametrize("pages", [12, 45])
def test_a_disk_that_is_full_is_told_so_and_room_lets_it_go_on(home: Path, model: Path, pages: int) -> None:
    file = spec(home.parent, model, free_port())
    home.mkdir()
    size = ("-o", f"size={4096 * pages}")
    subprocess.run(["mount", "-t", "tmpfs", *size, "tmpfs", str(home)], check=True)
    try:
        full = deliver(home, "up", str(file))
        assert (full.returncode, "[host.disk-full]" in full.stderr) == (1, True), full.stderr
        assert "fault" not in full.stderr
        subprocess.run(["mount", "-o", "remount,size=64m", str(home)], check=True)
        again = deliver(home, "up", str(file))
        assert (again.returncode, "promoted" in again.stdout) == (0, True), again.stderr
    finally:
        deliver(home, "down", "small")
        subprocess.run(["umount", "-l", str(home)], check=True)


def test_a_secret_in_an_engines_log_is_shown_by_no_verb_and_without_the_secret_no_log_is(
    home: Path, model: Path
) -> None:
    token, env = "tok-Q7Q7Q7Q7Q7Q7", "serving: {env: {MY_TOKEN: {env: MY_TOKEN}}}\n"
    file = spec(home.parent, model, free_port(), env)
    up = deliver(home, "up", str(file), MY_TOKEN=token)
    assert up.returncode == 0, up.stderr
    try:
        (state,) = home.glob("deliveries/small/processes/Engine-*/state.json")
        told = json.loads(state.read_text())
        engine = psutil.Process(told["pid"])
        engine.kill()
        engine.wait(10)
        with Path(told["binding"]["log"]).open("a") as log:
            log.write(f"ValueError: 401 with token {token}\n")
        for verb in (("status", "small"), ("list",)):
            for json_too in ((), ("--json",)):
                known = deliver(home, *verb, *json_too, MY_TOKEN=token)
                unknown = deliver(home, *verb, *json_too)
                assert (known.returncode, unknown.returncode) == (0, 0), known.stderr + unknown.stderr
                assert token not in known.stdout + unknown.stdout
                assert "401" not in unknown.stdout
        assert "401 with token ***" in deliver(home, "status", "small", MY_TOKEN=token).stdout
        assert "not quoted: the environment variable MY_TOKEN" in deliver(home, "status", "small", "--json").stdout
        assert "401 with token ***" in deliver(home, "logs", "small", MY_TOKEN=token).stdout
        for words in ((), ("--release", "(.*)"), ("--release", "*")):
            refused = deliver(home, "logs", "small", *words)
            assert (refused.returncode, refused.stdout) == (3, ""), refused
            assert "[release.log-unshown]" in refused.stderr
        odd = deliver(home, "logs", "small", "--release", ".*", MY_TOKEN=token)
        assert (odd.returncode, odd.stdout) == (3, ""), odd
        probed = deliver(home, "status", "small", "--probe", MY_TOKEN=token)
        assert (probed.returncode, "[release.not-up]" in probed.stderr) == (1, True), probed.stderr
        planned = deliver(home, "plan", str(file), "--json", MY_TOKEN=token).stdout
        assert "401 with token ***" in planned
    finally:
        assert deliver(home, "down", "small").returncode == 0
