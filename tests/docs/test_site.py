"""The documentation as a site, in a real browser: what axe-core finds, and that nothing is fetched from elsewhere."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import browsing

ROOT = Path(__file__).parents[2]
# Slow as well: `make test-all` asks them too, and skips them where there is no browser.
pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("the extra `docs` is not installed")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "-d", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def browser():
    with browsing.chromium() as browser:
        yield browser


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_axe_finds_no_serious_fault_on_any_page(site, browser, width, scheme):
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    outside = []
    page.on("request", lambda request: outside.append(request.url) if request.url.startswith("http") else None)
    faults = {}
    # What a server shows for a missing page asks for its parts from the server's root.
    names = sorted(set(site.rglob("*.html")) - {site / "404.html"})
    assert len(names) > 40
    for name in names:
        page.goto(name.as_uri())
        page.wait_for_timeout(100)
        found = browsing.serious_faults(page)
        if page.evaluate("document.documentElement.scrollWidth") > width:
            found["wider than the window"] = []
        if found:
            faults[str(name.relative_to(site))] = found
    assert faults == {}
    assert outside == []
