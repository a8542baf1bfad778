"""Debian's chromium, driven by playwright, that reaches this machine only."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Page, Route, sync_playwright

PATIENCE_MS = 60_000


def chromium() -> str | None:
    """Where it is, None where it is not installed (``scripts/test`` installs it where it
    may).
    """
    return shutil.which("chromium")


@contextmanager
def page() -> Iterator[Page]:
    """An empty page of 1400 × 1400; every request to another host is aborted."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        try:
            tab = browser.new_page(viewport={"width": 1400, "height": 1400})
            tab.set_default_timeout(PATIENCE_MS)
            tab.route("**/*", _only_here)
            yield tab
        finally:
            browser.close()


def _only_here(route: Route) -> None:
    url = urlsplit(route.request.url)
    if url.scheme in ("data", "blob") or url.hostname == "127.0.0.1":
        route.continue_()
    else:
        route.abort()


def artifacts_page(tab: Page, ui: str, flow_run: str) -> None:
    """Open the Artifacts tab of a run's page."""
    tab.goto(f"{ui}/v2/runs/flow-run/{flow_run}")
    tab.get_by_role("tab", name="Artifacts").click()
    tab.get_by_test_id("flow-run-artifacts-grid").wait_for()


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
