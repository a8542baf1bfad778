"""A step outside of a run is a plain call."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from model_delivery.base import BadInput, Finding, Permanent, Progress, Retryable, sink
from model_delivery.steps import run as protocol
from model_delivery.steps.run import read

PLAIN_CALL = """
import sys
from model_delivery.base import Progress, report, sink
from model_delivery.tasks import artifacts
from model_delivery.tasks.step import run_id, step

heard = []

@step("double")
def double(number: int) -> int:
    report(Progress("double"))
    return 2 * number

with sink(heard.append), artifacts.progress_sink():
    assert double(number=21) == 42
artifacts.publish_plan("# plan", ())
artifacts.publish_picture(b"", "nothing")
assert run_id() is None
assert heard == [Progress("double")], heard
print(sorted(name for name in sys.modules if name.split(".")[0] == "prefect"))
"""


def test_a_plain_call_imports_no_prefect_and_leaves_the_listener_alone() -> None:
    said = subprocess.run([sys.executable, "-c", PLAIN_CALL], capture_output=True, text=True, check=False, timeout=60)
    assert (said.stdout.strip(), said.stderr) == ("[]", "")


MARK = "6f1c0b9e-7a52-4c1e-9d55-0242ac120002"
FORGED = json.dumps(protocol._sealed('{"forged":true}')).encode()


def result(text: str) -> bytes:
    return json.dumps(protocol._sealed(text)).encode()


@pytest.mark.parametrize("place", [0, 1])
def test_a_line_that_anybody_wrote_into_the_log_is_no_result(place: int) -> None:
    """Also one that outlived the step's own first lines: a kubelet keeps a log's end
    alone.
    """
    log = [f'{MARK}{{"progress":{{"step":"smoke"}}}}'.encode(), MARK.encode() + result("{}")]
    log.insert(place, FORGED)
    assert read("smoke", log, MARK) == "{}"


def test_a_forged_line_alone_is_no_result_and_says_no_progress() -> None:
    heard: list[Progress] = []
    begun = f'{MARK}{{"progress":{{"step":"smoke"}}}}'.encode()
    with sink(heard.append), pytest.raises(Retryable, match=r"step\.no-result"):
        read("smoke", [begun, FORGED, b'{"progress":{"step":"forged"}}', b'{"findings":[],"kind":"gate"}'], MARK)
    assert heard == [Progress("smoke")]


@pytest.mark.parametrize("mark", ["", MARK])
def test_what_an_older_image_says_is_understood(mark: str) -> None:
    assert json.loads(read("smoke", [b"a word", FORGED], mark)) == {"forged": True}


@pytest.mark.parametrize(
    "line", ['{"progress":{"stop":1}}', '{"progress":7}', '{"findings":[7],"kind":"gate"}', '{"findings":[],"kind":"x"}', "7", "[" * 9999]
)  # fmt: skip
def test_a_line_of_no_known_form_is_passed_over(line: str) -> None:
    assert read("smoke", [line.encode(), FORGED]) == '{"forged":true}'


class Forger(BaseHTTPRequestHandler):
    """Answers with a result, on a line of its own, wherever an error may quote it."""

    def do_POST(self) -> None:  # the library's names
        self.send_response(500)
        self.end_headers()
        self.wfile.write(b"\n" + FORGED + b"\n")

    do_GET = do_POST  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def forger() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Forger)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_progress_is_one_line_that_steers_no_terminal() -> None:
    heard: list[str] = []
    with sink(lambda news: heard.append(news.line())), pytest.raises(Retryable):
        read("smoke", [json.dumps({"progress": {"step": "a\x1b[2J", "note": "b\n✗ forged\r\x9b2J"}}).encode()])
    assert heard == ["a [2J: b ✗ forged  2J"]


@pytest.mark.parametrize("findings", [[], {}, None, [{}], [1]])
def test_a_failure_that_says_nothing_is_no_ending(findings: object) -> None:
    with pytest.raises(Retryable, match="ended without a result"):
        read("smoke", [json.dumps({"findings": findings, "kind": "permanent"}).encode()])


@pytest.mark.parametrize("text", ["asked", "broken"])
def test_a_step_in_a_pod_marks_its_lines_and_tells_nobody_its_mark(tmp_path: Path, text: str) -> None:
    given = tmp_path / "input.json"
    with forger() as url:
        asked = {"url": url, "api_key": None, "model_names": ["m"], "prompt": "p", "expect": None, "max_tokens": 1}
        given.write_text(json.dumps(asked) if text == "asked" else "\n" + FORGED.decode() + "\n{")
        words = [sys.executable, "-m", "model_delivery.steps.run", "smoke", str(given), "-"]
        environ = os.environ | {"MODEL_DELIVERY_MARK": MARK}
        said = subprocess.run(
            words, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=60
        )
    lines = said.stdout.splitlines()
    assert said.returncode != 0
    assert lines[0].startswith(MARK.encode())
    assert FORGED not in lines
    with pytest.raises(Exception, match="exit code") as told:
        read("smoke", [*lines[:1], FORGED, *lines[1:]], MARK)
    assert not isinstance(told.value, BadInput)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ("ValidationError: 1 validation error for SmokeInput\nreplicas\n  Extra inputs are not permitted [type=extra_forbidden]\n    For further information visit https://errors.pydantic.dev/2.14/v/extra_forbidden", "it cannot read replicas"),
        ("KeyError: 'smoke'", "it knows no such step"),
    ],
)  # fmt: skip
def test_an_image_of_an_older_version_is_named_with_its_remedy_and_not_as_a_fault_of_ours(told: str, why: str) -> None:
    fault = Finding("step.broke", "the smoke step broke", told, "this is a fault of Model Delivery: report it")
    with pytest.raises(Permanent) as ended:
        read("smoke", [json.dumps({"findings": [fault.to_json()], "kind": "permanent"}).encode()])
    (found,) = ended.value.findings
    assert found.code == "step.older-image"
    assert found.why.endswith(why)
    assert "runner.image" in found.fix


def test_an_image_that_is_asked_what_it_does_not_know_says_that_it_is_of_another_version(tmp_path: Path) -> None:
    asked = {"url": "http://127.0.0.1:1", "model_names": ["m"], "prompt": "p", "expect": "", "max_tokens": 1, "mood": 1}
    with (tmp_path / "out").open("w+") as out:
        assert protocol.outcome("smoke", json.dumps(asked), out) == 1
        out.seek(0)
        said = out.read()
    with pytest.raises(Permanent, match=r"(?s)another version: mood: there is no such field.*runner\.image"):
        read("smoke", said.encode().splitlines())
