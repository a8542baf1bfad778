"""Debian's chromium, driven by playwright, that reaches this machine only."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import ConsoleMessage, Page, Route, sync_playwright

PATIENCE_MS = 60_000


def chromium() -> str | None:
    """Where it is, None where it is not installed (``scripts/test`` installs it where it
    may).
    """
    return shutil.which("chromium")


@dataclass
class Seen:
    """What pages asked of other hosts, in vain; errors of this machine's."""

    elsewhere: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def route(self, route: Route) -> None:
        if _here(route.request.url):
            route.continue_()
        else:
            self.elsewhere.append(route.request.url)
            route.abort()

    def console(self, message: ConsoleMessage) -> None:
        where = str(message.location.get("url", ""))
        if message.type == "error" and _here(where):
            self.errors.append(f"{where}: {message.text}")


@contextmanager
def page(seen: Seen | None = None) -> Iterator[Page]:
    """An empty page of 1400 × 1400; every request to another host is aborted."""
    seen = seen or Seen()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        try:
            tab = browser.new_page(viewport={"width": 1400, "height": 1400})
            tab.set_default_timeout(PATIENCE_MS)
            tab.route("**/*", seen.route)
            tab.on("console", seen.console)
            tab.on("pageerror", lambda error: seen.errors.append(str(error)))
            yield tab
        finally:
            browser.close()


def _here(address: str) -> bool:
    url = urlsplit(address)
    return url.scheme in ("data", "blob", "") or url.hostname == "127.0.0.1"


def artifacts_page(tab: Page, ui: str, flow_run: str) -> None:
    """Open the Artifacts tab of a run's page."""
    tab.goto(f"{ui}/v2/runs/flow-run/{flow_run}")
    tab.get_by_role("tab", name="Artifacts").click()
    tab.get_by_test_id("flow-run-artifacts-grid").wait_for()


def artifact_says(tab: Page, ui: str, artifact: str, text: str) -> None:
    """Return once an artifact's page shows ``text``."""
    tab.goto(f"{ui}/v2/artifacts/artifact/{artifact}")
    tab.get_by_test_id("markdown-display").filter(has_text=text).wait_for()


def steps(tab: Page, ui: str, flow_run: str, number: int) -> list[str]:
    """The lines of the Task Runs tab of a run's page, oldest first, once it says how many
    of them there are.
    """
    tab.goto(f"{ui}/v2/runs/flow-run/{flow_run}")
    tab.get_by_role("tab", name="Task Runs").click()
    tab.get_by_text(f"({number} Completed)").wait_for()
    return tab.get_by_role("tabpanel", name="Task Runs").inner_text().splitlines()[::-1]


def artifact_picture(tab: Page, ui: str, artifact: str, shot: Path) -> int:
    """The width in pixels of the picture that an artifact's page really shows; a
    screenshot goes to ``shot``.
    """
    tab.goto(f"{ui}/v2/artifacts/artifact/{artifact}")
    picture = tab.get_by_test_id("markdown-display").locator("img").first
    picture.wait_for()
    tab.wait_for_function("element => element.complete", arg=picture.element_handle())
    tab.screenshot(path=shot)
    width: int = picture.evaluate("element => element.naturalWidth")
    return width
