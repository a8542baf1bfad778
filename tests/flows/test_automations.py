"""What the server does by itself, once `deliver automations` has put it there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.blocks.system import Secret

from tests.flows.test_operations import Lab, lab
from tests.parts import prefect_server as parts
from tests.parts.cluster.waiting import until
from tests.unit.test_cli import deliver

__all__ = ["lab"]
BLOCK = "custom-webhook/ops"


@contextmanager
def hearing() -> Iterator[tuple[str, list[Any]]]:
    """A webhook, and what it was sent."""
    heard: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the library's name
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook", heard
    server.shutdown()
    server.server_close()
    thread.join()


def automations(lab: Lab, *words: str) -> dict[str, str]:
    done = deliver(lab.home, "automations", *words, "--json", **lab.server.env)
    assert done.returncode == 0, done.stderr
    return {one["name"].removeprefix("model-delivery: "): one["action"] for one in json.loads(done.stdout)}


@pytest.fixture
def ops(lab: Lab) -> Iterator[list[Any]]:
    """A notification block of the server; what it was told."""
    with hearing() as (url, heard), parts.settings_of(lab.server):
        block = CustomWebhookNotificationBlock(
            name="ops", url=url, json_data={"subject": "{{subject}}", "body": "{{body}}"}
        )
        block.save("ops", overwrite=True)
        yield heard


def test_they_are_put_there_once_and_one_that_a_person_disabled_stays_so(lab: Lab, ops: list[Any]) -> None:
    assert ops == []
    file = yaml.safe_load(Path("manifests/prefect/automations.yaml").read_text())
    shipped = {one["name"].removeprefix("model-delivery: ") for one in file}
    first = automations(lab)
    assert first.keys() == shipped
    assert first["a dead run is marked Crashed"] in ("new", "unchanged")
    assert "needs --notify" in first["tell of a refused release"]
    automations(lab, "--notify", BLOCK)
    again = automations(lab, "--notify", BLOCK)
    assert {name for name, action in again.items() if action == "unchanged"} >= {
        "a dead run is marked Crashed",
        "tell of a refused release",
        "tell of a run that failed",
    }
    (dead,) = lab.client.read_automations_by_name("model-delivery: a dead run is marked Crashed")
    lab.client.pause_automation(dead.id)
    assert automations(lab, "--notify", BLOCK)["a dead run is marked Crashed"] == "unchanged"
    assert not lab.client.read_automations_by_name(dead.name)[0].enabled
    lab.client.resume_automation(dead.id)
    wrong = deliver(lab.home, "automations", "--notify", "slack-webhook/none", **lab.server.env)
    assert (wrong.returncode, "Traceback" in wrong.stderr) == (3, False)
    with parts.settings_of(lab.server):
        Secret(value="s3cret").save("mute", overwrite=True)
    mute = deliver(lab.home, "automations", "--notify", "secret/mute", **lab.server.env)
    assert (mute.returncode, "the block secret/mute notifies nobody" in mute.stderr) == (3, True), mute.stderr
    assert automations(lab, "--notify", BLOCK)["tell of a refused release"] == "unchanged"


def test_a_refusal_is_told_with_its_code_and_remedy(lab: Lab, ops: list[Any]) -> None:
    automations(lab, "--notify", BLOCK)
    lab.ended(lab.spec(gates={"smoke": {"expect": "Rome"}, "throughput": None}))
    until(lambda: [said for said in ops if "was refused" in said["subject"]], 60, "nobody is told")
    (told,) = [said for said in ops if "was refused" in said["subject"]]
    assert "'Rome' is not in" in told["body"]
    assert "[gate.smoke]" in told["body"]
