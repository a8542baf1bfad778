"""What the command says: the same in every verb, in words that need no source to be
read, with what to do.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parts.ports import free_port
from tests.parts.timing_engine import TimingServer
from tests.unit.test_cli import DELIVER, deliver, environment, home, spec

__all__ = ["home"]


def test_a_rerun_is_judged_by_the_gates_that_its_spec_has_now(home: Path, model: Path) -> None:
    file = spec(home.parent, model, free_port())
    first = file.read_text()
    file.write_text(first.replace("duration: 500ms", "duration: 20s"))
    run = subprocess.Popen([str(DELIVER), "up", str(file)], env=environment(home), stderr=subprocess.PIPE, text=True)
    while not list(home.glob("deliveries/small/objects/Step/load-*.json")):
        assert run.poll() is None, run.communicate()
    run.terminate()
    _, told = run.communicate()
    assert run.returncode == 5, told
    file.write_text(first.replace("gates: {", "gates: {smoke: {expect: what no model says}, "))
    done = deliver(home, "up", str(file), "--json")
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["code"]) == (4, "gate.smoke")
    assert "gates.smoke" in error["fix"]
    assert deliver(home, "down", "small").returncode == 0


def test_a_port_that_another_delivery_has_is_told_with_its_name_and_a_moved_one_alike(home: Path, model: Path) -> None:
    port = free_port()
    file = spec(home.parent, model, port)
    assert deliver(home, "up", str(file)).returncode == 0
    first = file.read_text()
    for name, moved, code, why in (
        ("other", port, "host.port-taken", f"the delivery small listens on 127.0.0.1:{port}"),
        ("small", free_port(), "target.moved", f"it is up on port {port}"),
    ):
        file.write_text(first.replace("name: small", f"name: {name}").replace(f"port: {port}", f"port: {moved}"))
        for verb in ("plan", "up"):
            error = json.loads(deliver(home, verb, str(file), "--json").stdout)["error"]
            assert error["code"] == code
            assert why in error["why"]
    assert deliver(home, "down", "small").returncode == 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--slo", "ttft_p59_max=1s"), ("ttft_p59_max: there is no such field", "did you mean ttft_p9")),
        (("--slo", "error_rate_max=5%"), ("error_rate_max: must be a number",)),
        (("--slo", "error_rate_max=7"), ("error_rate_max: must be 1 or less",)),
    ],
)
def test_a_wrong_bound_is_told_plainly(home: Path, args: tuple[str, ...], words: tuple[str, ...]) -> None:
    done = deliver(home, "loadtest", f"http://127.0.0.1:{free_port()}", *args)
    assert done.returncode == 2
    for expected in words:
        assert expected in done.stderr


def test_a_number_out_of_its_range_is_told_with_the_range(home: Path, model: Path) -> None:
    done = deliver(home, "plan", str(spec(home.parent, model, 99999)))
    assert (done.returncode, "target.port: must be 65535 or less" in done.stderr) == (2, True), done.stderr


def test_a_model_without_a_tokenizer_is_refused_unless_the_spec_names_one(
    home: Path, model: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(model, bare, ignore=shutil.ignore_patterns("tokenizer*", "*.model", "vocab*"))
    file = spec(home.parent, bare, free_port())
    done = deliver(home, "plan", str(file))
    assert (done.returncode, "the model has no tokenizer" in done.stderr) == (3, True), done.stderr
    file.write_text(file.read_text() + "serving: {args: [--tokenizer, org/other]}\n")
    assert deliver(home, "plan", str(file)).returncode == 0


def test_a_model_that_a_server_does_not_list_is_told_with_the_nearest(home: Path, model: Path) -> None:
    with TimingServer(model, names=("mine",)) as server:
        done = deliver(home, "loadtest", server.url, "--model", "mime", "--duration", "1s", "--warmup", "0s")
    assert (done.returncode, "has no model mime: did you mean mine?" in done.stderr) == (2, True), done.stderr


def test_a_plan_says_that_what_serves_stops_first(home: Path, model: Path) -> None:
    file = spec(home.parent, model, free_port())
    assert deliver(home, "up", str(file)).returncode == 0
    told = file.read_text().replace("rollout: {", "rollout: {strategy: recreate, ")
    file.write_text(told + "serving: {args: [--label, second]}\n")
    planned = deliver(home, "plan", str(file)).stdout
    assert "what serves stops first, and clients are refused" in planned
    assert [line.partition(": ")[2] for line in planned.splitlines() if line.startswith("differs")] == [
        '--label: null → "second"'
    ]
    file.write_text(file.read_text().replace("gates: {", "gates: {smoke: {expect: what no model says}, "))
    done = deliver(home, "up", str(file))
    assert (done.returncode, "is started again" in done.stderr) == (4, True), done.stderr
    assert deliver(home, "down", "small").returncode == 0


def test_a_load_of_no_time_is_refused_with_the_spec(home: Path, model: Path) -> None:
    file = spec(home.parent, model, free_port())
    file.write_text(file.read_text().replace("duration: 500ms", "duration: 0s"))
    done = deliver(home, "plan", str(file))
    assert (done.returncode, "duration must be more than 0s" in done.stderr) == (2, True), done.stderr


INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts in the background has it ignored

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "model_delivery.cli.main":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
from model_delivery.cli.entry import main
main()
"""


def test_an_interrupt_before_everything_is_imported_is_told_without_a_traceback() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr == "✗ interrupted before anything was begun [cli.interrupted]\n"
