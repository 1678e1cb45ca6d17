"""Opens pages in the system's Chromium, headless and with an empty profile."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, sync_playwright

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@contextmanager
def chromium() -> Iterator[Browser]:
    """Starts Chromium. Skips the test if it is not installed."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, headless=True, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """An open page, with a log of its errors and console messages (``complaints``) and of its requests (``asked``)."""

    def __init__(self, context: BrowserContext, address: Path) -> None:
        self.page: Page = context.new_page()
        self.page.set_default_timeout(20_000)
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("requestfailed", self._failed)
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address.as_uri())

    def _failed(self, request: Request) -> None:
        # Chromium aborts pending requests when the page follows a link.
        if request.failure != "net::ERR_ABORTED":
            self.complaints.append(f"no {request.url}: {request.failure}")

    def scroll_through(self) -> None:
        """Scrolls to every image and waits until it is decoded."""
        self.page.evaluate(
            "async () => { for (const image of document.images) { image.scrollIntoView(); await image.decode(); } }"
        )

    def too_wide(self) -> int:
        """Returns the pixels by which the page is wider than its window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))
