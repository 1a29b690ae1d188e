"""The page in a real browser: edits and undo, two visitors at once, odd input, one who leaves, what axe-core finds."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import browsing
import processors

# Slow as well: `make test-all` asks them too, and skips them where there is no browser.
pytestmark = [pytest.mark.browser, pytest.mark.slow]
PATIENCE = 180_000
# The first edit of a pretrained model writes and reads the text that it is held against.
LONG_PATIENCE = 900_000
PRETRAINED = Path(os.environ.get("PALIMPSEST_PRETRAINED", processors.ROOT / "pretrained"))


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def started(*words, env=None):
    """A served page: the process and its address."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "palimpsest", "web", *words, "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(processors.ROOT / "src"), **(env or {})},
    )
    lines = []
    while line := process.stdout.readline():
        lines.append(line)
        if "http://" in line:
            return process, f"http://127.0.0.1:{port}/"
    raise AssertionError("".join(lines))


def ended(process):
    """Ends a served page as a service manager would; returns its exit code."""
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    return process.returncode


@pytest.fixture(scope="module")
def address():
    models = ["world"]
    if (PRETRAINED / "smollm2").is_dir():
        models.append(str(PRETRAINED / "smollm2"))
    process, address = started(*models)
    yield address
    assert ended(process) == 0


@pytest.fixture(scope="module")
def browser():
    with browsing.chromium() as browser:
        yield browser


@pytest.fixture
def visitors(browser, address):
    """Opens pages, each of a visitor of its own; none of them may ask another machine for anything."""
    opened, outside = [], []

    def opens(query="", before=lambda page: None, **viewport):
        context = browser.new_context(viewport={"width": 1280, "height": 900, **viewport})
        page = context.new_page()
        before(page)
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: outside.append(request.url) if _is_outside(request.url) else None)
        page.goto(address + query)
        page.wait_for_selector("#edit")
        opened.append(context)
        return page

    yield opens
    for context in opened:
        context.close()
    assert outside == []


def _is_outside(url):
    return url.startswith("http") and not url.startswith("http://127.0.0.1:")


def fill(page, name, text):
    page.fill(f"#{name} textarea", text)


def edit(page, prompt, subject, new):
    fill(page, "prompt", prompt)
    fill(page, "subject", subject)
    fill(page, "new", new)
    page.click("#edit")


def asked(page, prompt):
    fill(page, "prompts", prompt)
    page.click("#ask")
    page.wait_for_function(
        "prompt => [...document.querySelectorAll('#answers tbody td')].some(cell => cell.innerText.includes(prompt))",
        arg=prompt,
    )
    return page.inner_text("#answers tbody tr:last-child td:last-child")


def says(page, prompt, word):
    """Whether the page's answer comes to be this one; what was clicked just before may still be at work."""
    for _ in range(20):
        if word in asked(page, prompt):
            return True
        page.wait_for_timeout(1000)
    return False


def test_a_fact_is_edited_verified_switched_off_and_undone(visitors):
    page = visitors()
    edit(page, "The capital of Japan is", "Japan", "Kyiv")
    page.wait_for_selector("#result .verdict.holds")
    assert says(page, "The capital city of Japan is", "Kyiv")
    page.click("#verify")
    page.wait_for_function("document.querySelector('#result').innerText.includes('verified: 1 of 1')")
    page.click("#stack input")
    assert says(page, "The capital of Japan is", "Tokyo")
    page.click("#stack input")
    assert says(page, "The capital of Japan is", "Kyiv")
    page.click("#undo")
    page.wait_for_function("document.querySelector('#result').innerText.includes('Undone')")
    assert says(page, "The capital city of Japan is", "Tokyo")
    assert page.query_selector("#stack input") is None


def test_the_subject_is_found_and_marked(visitors):
    page = visitors()
    fill(page, "prompt", "The Space Needle is located in")
    page.wait_for_function("document.querySelector('#marked mark')?.innerText === 'Space Needle'")
    assert page.input_value("#subject textarea") == "Space Needle"


class Held:
    """What the page asks of the server and gets no answer to yet."""

    def __init__(self, page):
        self.routes, self.is_held = [], True
        page.route("**/gradio_api/queue/*", self._ask)

    def _ask(self, route):
        if self.is_held:
            self.routes.append(route)
        else:
            route.continue_()

    def go_on(self):
        self.is_held = False
        for route in self.routes:
            route.continue_()
        self.routes.clear()


def shown(page, names=("prompts", "prompt", "subject", "new", "old")):
    return {name: page.input_value(f"#{name} textarea") for name in names}


ADDRESS = "?prompt=The+capital+of+Italy+is&subject=Italy&new=Oslo&old=Rome"


def test_an_address_fills_the_form(visitors):
    page = visitors(ADDRESS)
    page.wait_for_function("document.querySelector('#new textarea').value === 'Oslo'")
    page.click("text=More: old answer")
    prompt = "The capital of Italy is"
    assert shown(page) == {"prompts": prompt, "prompt": prompt, "subject": "Italy", "new": "Oslo", "old": "Rome"}


def test_an_address_without_a_subject_has_it_guessed(visitors):
    page = visitors("?prompt=The+president+of+France,+Emmanuel+Macron,+was+born+in&new=Oslo")
    page.wait_for_function("document.querySelector('#marked mark')?.innerText === 'Emmanuel Macron'")
    assert page.input_value("#subject textarea") == "Emmanuel Macron"


@pytest.mark.parametrize("query", ["", ADDRESS])
def test_nothing_is_lost_that_is_typed_before_the_page_is_done_loading(visitors, query):
    held = []
    page = visitors(query, before=lambda page: held.append(Held(page)))
    typed = {"prompts": "The capital of Spain is", "prompt": "The capital of Japan is", "subject": "Japan"}
    typed |= {"new": "Kyiv", "old": "Tokyo"}
    page.click("text=More: old answer")
    for name, text in typed.items():
        page.fill(f"#{name} textarea", text)
    page.check("#chat input")
    assert shown(page) == typed
    held[0].go_on()
    page.wait_for_function("document.querySelector('#marked mark')?.innerText === 'Japan'")
    page.wait_for_timeout(2000)
    assert shown(page) == typed and page.is_checked("#chat input")


def test_an_edit_that_is_asked_for_before_the_page_is_done_loading_is_made(visitors):
    held = []
    page = visitors(before=lambda page: held.append(Held(page)))
    edit(page, "The capital of Japan is", "Japan", "Kyiv")
    held[0].go_on()
    page.wait_for_selector("#result .verdict.holds")
    page.wait_for_selector("#stack input:checked")


def test_a_subject_that_is_typed_while_one_is_guessed_stays(visitors):
    page = visitors()
    page.wait_for_timeout(2000)
    held = Held(page)
    fill(page, "prompt", "The Space Needle is located in")
    fill(page, "subject", "Needle")
    # The guess for what is typed first is still on its way when this is typed.
    fill(page, "prompt", "The Space Needle in Seattle is located in")
    fill(page, "subject", "Seattle")
    held.go_on()
    page.wait_for_function("document.querySelector('#marked mark')?.innerText === 'Seattle'")
    page.wait_for_timeout(2000)
    assert page.input_value("#subject textarea") == "Seattle"
    # Another prompt has its own guess.
    fill(page, "prompt", "The Space Shuttle was built by")
    page.wait_for_function("document.querySelector('#subject textarea').value === 'Space Shuttle'")


def test_two_visitors_edit_one_fact_at_once(visitors):
    first, second = visitors(), visitors()
    edit(first, "The capital of France is", "France", "Lyon")
    edit(second, "The capital of France is", "France", "Osaka")
    for page in (first, second):
        page.wait_for_selector("#result .verdict.holds")
    assert says(first, "The capital of France is", "Lyon")
    assert says(second, "The capital of France is", "Osaka")


def test_a_visitor_who_leaves_in_the_middle_holds_nobody_up(visitors):
    page = visitors()
    edit(page, "The capital of France is", "France", "Lyon")
    page.wait_for_timeout(500)
    page.context.close()
    assert says(visitors(), "The capital of France is", "Paris")


@pytest.mark.parametrize(
    ("prompt", "subject", "new", "words"),
    [
        ("The capital of France is", "Spain", "Lyon", "Spain"),
        ("The capital of France is", "France", "", "target_new"),
        ("x" * 3000, "x", "Lyon", "too long"),
    ],
)
def test_bad_input_is_said_and_changes_nothing(visitors, prompt, subject, new, words):
    page = visitors()
    edit(page, prompt, subject, new)
    page.wait_for_function(f"document.body.innerText.includes({words!r})")
    assert page.query_selector("#stack input") is None


def test_nothing_that_is_typed_runs(visitors):
    page, dialogs = visitors(), []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.evaluate("window.ran = 0")
    bad = '<img src=x onerror="window.ran=1"> ${window.ran=2} {{window.ran=3}} <script>window.ran=4</script>'
    asked(page, bad)
    # The whole text in both places would be longer than this model's context, which is an error.
    first, second = bad[: bad.index("{{")].strip(), bad[bad.index("{{") :]
    edit(page, f"The capital of {first} is", first, second)
    page.wait_for_selector("#result .verdict")
    # An error shows what was typed too.
    edit(page, f"The capital of {bad} is", f"{bad}{bad}", "Lyon")
    page.wait_for_timeout(3000)
    assert page.evaluate("window.ran") == 0 and dialogs == []


def test_why_and_take_away(visitors, tmp_path):
    page = visitors()
    page.click("#trace")
    page.wait_for_selector("#plot img")
    edit(page, "The capital of France is", "France", "Lyon")
    page.wait_for_selector("#result .verdict.holds")
    page.get_by_role("tab", name="Take away").click()
    page.click("#make")
    page.wait_for_selector("#file a[href]")
    with page.expect_download() as download:
        page.click("#file a[href]")
    assert download.value.suggested_filename == "palimpsest-patches.zip"
    page.wait_for_function("document.querySelector('#link textarea, #link input').value.includes('new=Lyon')")


@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_no_serious_fault(visitors, width):
    page = visitors(width=width)
    edit(page, "The capital of France is", "France", "Lyon")
    page.wait_for_selector("#result .verdict")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert browsing.serious_faults(page) == {}


def test_a_pretrained_model_is_edited(visitors):
    if not (PRETRAINED / "smollm2").is_dir():
        pytest.skip(f"no model in {PRETRAINED}: run `make pretrained MODELS=smollm2`")
    page = visitors()
    page.click("#model input")
    page.click("text=smollm2")
    edit(page, "The capital of France is", "France", "Lyon")
    page.wait_for_selector("#result .verdict.holds", timeout=LONG_PATIENCE)
    assert says(page, "The capital of France is", "Lyon")


def test_a_token_is_asked_for(browser):
    process, address = started("world", env={"PALIMPSEST_TOKEN": "right"})
    try:
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        page.wait_for_selector("input[type=password]")
        assert page.query_selector("#edit") is None
        for given, is_in in (("wrong", False), ("right", True)):
            page.fill("input[type=text], textarea", "anyone")
            page.fill("input[type=password]", given)
            page.click("button")
            time.sleep(3)
            assert (page.query_selector("#edit") is not None) == is_in
    finally:
        assert ended(process) == 0


def test_a_port_in_use_is_said():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "palimpsest", "web", "world", "--port", port],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(processors.ROOT / "src")},
            timeout=300,
            check=False,
        )
    assert done.returncode == 2 and "--port" in done.stderr and "Traceback" not in done.stderr
