"""The browser that tests of pages use, where one is installed and there is playwright to drive it."""

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NO_BROWSER = "there is no browser: `apt-get install chromium`"
if importlib.util.find_spec("playwright") is None:
    BROWSER, NO_BROWSER = None, "there is no playwright: `uv pip install playwright`"
QUIET = [  # no sandbox, because containers run as root; nothing that calls home
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@contextmanager
def started_browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=BROWSER, args=QUIET)
        yield started
        started.close()
