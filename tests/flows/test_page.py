"""What a browser shows of a delivery: Prefect's own page, in Debian's chromium.

``MODEL_DELIVERY_SCREENSHOTS=docs/images`` before pytest makes the README's pictures
again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prefect.client.schemas.objects import FlowRun

from tests.flows.test_operations import STEPS, Lab, lab
from tests.parts import browser
from tests.parts import prefect_server as parts
from tests.unit.test_cli import deliver

__all__ = ["lab"]
pytestmark = pytest.mark.browser
NAME = "tiny-chat"
REMOTE = "http://elsewhere.invalid/picture.png"
PREFECTS_OWN = (
    "https://sr-client-cfg.amplitude.com/",  # its analytics' settings
    "/completed.svg: Failed to load resource: the server responded with a status of 404",
    "/api/task_runs/filter: Failed to load resource: the server responded with a status of 422",  # an artifact of no task
)


@dataclass
class Shown:
    """A run that ended well, one that was refused, and all that a browser met."""

    lab: Lab
    promoted: FlowRun
    refused: FlowRun
    seen: browser.Seen = field(default_factory=browser.Seen)

    def artifact(self, run: FlowRun, kind: str) -> str:
        return str(parts.artifacts_of(self.lab.client, run)[f"{NAME}-{kind}"].id)


@pytest.fixture
def shown(lab: Lab) -> Iterator[Shown]:
    """The refused one quotes a picture of another host."""
    try:
        smoke = {"expect": f"![x]({REMOTE})"}
        promoted = lab.ended(lab.spec("4s", name=NAME))
        yield Shown(lab, promoted, lab.ended(lab.spec(name=NAME, gates={"smoke": smoke})))
    finally:
        deliver(lab.home, "down", NAME)


def test_the_pages_show_the_dag_outcome_verdict_and_picture_and_the_form_refuses_a_wrong_unit(
    shown: Shown, tmp_path: Path
) -> None:
    ui, run = shown.lab.server.ui, shown.promoted
    with browser.page(shown.seen) as tab:
        lines = browser.steps(tab, ui, str(run.id), len(STEPS))
        assert [line for line in lines if line in STEPS] == STEPS
        for kind, text in (
            ("outcome", f"{NAME}: promoted"),
            ("outcome", f"http://127.0.0.1:{shown.lab.port}/v1"),
            ("verdict", "error rate 0 % is as wanted, at most 0 %"),
        ):
            browser.artifact_says(tab, ui, shown.artifact(run, kind), text)
        assert browser.artifact_picture(tab, ui, shown.artifact(run, "throughput"), tmp_path / "picture.png") > 500
        for kind in ("trouble", "verdict"):
            browser.artifact_says(tab, ui, shown.artifact(shown.refused, kind), REMOTE)
        assert not [error for error in shown.seen.errors if not own(error)]

        made = shown.lab.client.read_deployment_by_name(f"deliver/{NAME}")
        before = len(shown.lab.client.read_flow_runs())
        tab.goto(f"{ui}/v2/deployments/deployment/{made.id}/run")
        tab.get_by_label("Warmup (Optional)", exact=True).fill("10 parsecs")
        tab.get_by_role("button", name="Submit", exact=True).click()
        tab.get_by_text("field 'spec.gates.throughput.warmup'. Failure reason: '10 parsecs' does not match").wait_for()
        assert len(shown.lab.client.read_flow_runs()) == before
    assert not [url for url in shown.seen.elsewhere if not own(url)]
    if folder := os.environ.get("MODEL_DELIVERY_SCREENSHOTS"):
        screenshots(shown, Path(folder))


def own(text: str) -> bool:
    return any(part in text for part in PREFECTS_OWN)


def screenshots(shown: Shown, folder: Path) -> None:
    ui = shown.lab.server.ui
    with browser.page() as tab:
        tab.set_viewport_size({"width": 1280, "height": 820})
        browser.artifacts_page(tab, ui, str(shown.promoted.id))
        tab.wait_for_timeout(3000)  # a canvas tells nobody that it is drawn
        tab.screenshot(path=folder / "run.png")
        browser.artifact_says(tab, ui, shown.artifact(shown.promoted, "verdict"), "Passed")
        tab.screenshot(path=folder / "verdict.png")
