"""Pages in a headless Chromium, and what axe-core finds on them."""

import contextlib
import shutil

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SERIOUS = ("serious", "critical")


@contextlib.contextmanager
def chromium():
    """A browser; the test is skipped, saying so, where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the extra `browser` is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def serious_faults(page):
    """What axe-core calls serious or critical: rule to elements."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the extra `browser` is not installed")
    found = axe.Axe().run(page).response["violations"]
    return {
        fault["id"]: [node["html"][:200] for node in fault["nodes"]] for fault in found if fault["impact"] in SERIOUS
    }
