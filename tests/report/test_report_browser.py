"""The page in a real browser: wide and on a phone, by day and by night, with JavaScript and without it."""

import pytest

import browsing
import fake_runs as fakes
from palimpsest.report import build_report
from palimpsest.report.tables import label_runs, ranked

# Slow as well: `make test-all` asks them too, and skips them where there is no browser.
pytestmark = [pytest.mark.browser, pytest.mark.slow]
RECORDS = [fakes.record(method) for method in fakes.METHODS]
SEVERAL = [
    fakes.record(method, protocol=protocol) for method in fakes.METHODS[:4] for protocol in ("single", "sequential")
]
ROWS = "[...document.querySelectorAll('.scoring-0 .runs tbody th')].map(head => head.innerText)"
WIDTHS = (1440, 390)


@pytest.fixture(scope="module")
def browser():
    with browsing.chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    for name, records in (("one", RECORDS), ("several", SEVERAL)):
        build_report(records, folder / f"{name}.html")
    return {name: (folder / f"{name}.html").as_uri() for name in ("one", "several")}


def opened(browser, address, width=1440, **settings):
    page = browser.new_context(viewport={"width": width, "height": 900}, **settings).new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    assert asked == [address]
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["one", "several"])
def test_axe_finds_no_serious_fault_and_nothing_is_wider_than_the_window(browser, pages, name, width, scheme):
    page = opened(browser, pages[name], width, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("document.querySelectorAll('details').forEach(one => (one.open = true))")
    assert browsing.serious_faults(page) == {}


def test_the_table_of_scores_fits_a_phone_until_every_kind_is_asked_for(browser, pages):
    page = opened(browser, pages["one"], 390)
    is_scrolled = "(box => box.scrollWidth > box.clientWidth)(document.querySelector('.scores .scroll'))"
    assert not page.evaluate(is_scrolled)
    assert page.locator(".scoring-0 .detail:visible").count() == 0
    page.locator(".every-kind").first.check()
    assert page.evaluate(is_scrolled)
    assert page.locator(".scoring-0 .detail:visible").count() > 0


def test_the_whole_width_is_used(browser, pages):
    page = opened(browser, pages["one"], 1440)
    assert page.evaluate("document.querySelector('.scores table').getBoundingClientRect().width") > 1300


def test_columns_are_sorted_by_a_click_and_turned_round_by_the_next(browser, pages):
    runs = label_runs(RECORDS)
    best_first = [run.label for run in ranked(runs, "generate")]
    page = opened(browser, pages["one"])
    assert page.evaluate(ROWS) == best_first
    head = page.locator(".scoring-0 thead tr:last-child th")
    names = head.evaluate_all("heads => heads.map(head => head.dataset.name ?? head.innerText)")
    place = names.index("generality")
    head.nth(place).locator("button").click()
    known = {run.label: run.mean("generate", "generality") for run in runs}
    found = [known[name] for name in page.evaluate(ROWS)]
    assert found == sorted(found, reverse=True)
    assert head.nth(place).get_attribute("aria-sort") == "descending"
    head.nth(place).locator("button").click()
    assert [known[name] for name in page.evaluate(ROWS)] == sorted(found)
    head.nth(0).locator("button").click()
    assert page.evaluate(ROWS) == sorted(best_first)


def test_without_javascript_everything_can_be_read(browser, pages):
    page = opened(browser, pages["one"], java_script_enabled=False)
    assert page.locator(".told li").count() == 4
    assert page.locator(".scoring-0 .runs tbody tr:visible").count() == len(RECORDS)
    assert page.locator(".scoring-1:visible").count() == 0
    page.locator("#scoring-1").check()
    assert page.locator(".scoring-1 .runs tbody tr:visible").count() == len(RECORDS)
    assert page.locator(".scoring-0:visible").count() == 0
    assert page.locator(".edit:visible").count() > 0
    assert page.locator("form.filters:visible").count() == 0


def test_a_table_is_downloaded_with_every_column(browser, pages):
    page = opened(browser, pages["one"], 390)
    with page.expect_download() as download:
        page.locator(".take").first.click()
    lines = download.value.path().read_text().splitlines()
    assert lines[0].startswith('"method","score","reliability","generality","locality"')
    assert '"old answer: still given"' in lines[0] and len(lines) == len(RECORDS) + 1
