"""A headless Chromium for pages that a person looks at."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

INSTALL = "install Chromium: the system's package, or `.venv/bin/playwright install chromium`"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@contextmanager
def chromium() -> "Iterator[Browser]":
    """The system's, or playwright's own; the test is skipped where there is neither."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is one of the development tools")
    names = ("chromium", "chromium-browser", "google-chrome")
    system = next((found for name in names if (found := shutil.which(name))), None)
    with sync_api.sync_playwright() as playwright:
        if system is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip(f"no browser: {INSTALL}")
        browser = playwright.chromium.launch(executable_path=system, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()
