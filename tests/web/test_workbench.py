"""What the page does, without a page."""

import json
import subprocess
import sys
import threading
import zipfile

import pytest

import thinking_model
import tiny
from palimpsest import ConfigError, DataError, load, load_patch
from palimpsest.errors import ModelError, PalimpsestError
from palimpsest.web import showing
from palimpsest.web.exporting import FORMS, export
from palimpsest.web.form import LONGEST_TEXT, MOST_LINES, EditForm
from palimpsest.web.workbench import Asked, EditingDesk, Workbench
from palimpsest.wording import Reply, thought_of

FRANCE = EditForm(
    "The capital of France is",
    "Lyon",
    "France",
    rephrasings=["The capital city of France is", ""],
    neighbours=["The capital of Japan is"],
)
JAPAN = EditForm("The capital of Japan is", "Osaka", "Japan")
QUICK = {"name": "ft"}


@pytest.fixture(scope="module")
def bench():
    return Workbench(["world", "nowhere"])


@pytest.fixture
def desk(bench):
    return EditingDesk(bench, "world")


def weights(bench):
    with bench.using("world") as model:
        return {name: value.clone() for name, value in model.module.state_dict().items()}


def test_what_is_at_work_when_the_page_ends_is_broken_off():
    bench = Workbench(["world"])
    desk, begun, errors = EditingDesk(bench, "world"), threading.Event(), []
    before = weights(bench)

    def told(stage, done, total):
        begun.set()

    def edit():
        try:
            desk.edit(JAPAN, name="ft", options={"preset": "none", "epochs": 10**6, "stop_margin": 1e6}, progress=told)
        except ConfigError as error:
            errors.append(error)

    worker = threading.Thread(target=edit)
    worker.start()
    assert begun.wait(60) and bench.end(60)
    worker.join(60)
    assert "being ended" in str(errors[0]) and desk.stack == []
    with pytest.raises(ConfigError, match="being ended"):
        desk.ask(["The capital of France is"])
    after = bench._models["world"].module.state_dict()
    assert all((after[name] == value).all() for name, value in before.items())


BUSY = """
import sys, threading, time
import torch
from palimpsest import web
from palimpsest.cli import main

def served(bench, *, ready, **_):
    begun = threading.Event()
    def work():
        with bench.using("world") as model:
            begun.set()
            while True:
                model.generate(["The capital of France is"] * 8, max_new_tokens=20)
    threading.Thread(target=work, daemon=True).start()
    begun.wait()
    time.sleep(0.5)

web.serve_page = served
sys.argv[1:] = ["web", "world"]
sys.exit(main())
"""


def test_work_that_cannot_be_broken_off_does_not_abort_the_end():
    ended = subprocess.run([sys.executable, "-c", BUSY], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert "What is still being computed is left." in ended.stdout + ended.stderr


def test_a_fact_is_asked_edited_tested_and_undone(bench, desk):
    before = weights(bench)
    [asked] = desk.ask(["", " The capital of France is "])
    assert asked.before == asked.after == "Paris."
    entry = desk.edit(FRANCE, **QUICK)
    assert entry.verdict.verdict == "holds"
    assert [check.probe.kind for check in entry.checks] == ["reliability", "generality", "locality.neighborhood"]
    assert entry.checks[0].passes and entry.checks[0].before.strip().startswith("Paris")
    [asked] = desk.ask(["The capital of France is"])
    assert (asked.before, asked.after) == ("Paris.", "Lyon.")
    assert desk.undo() is entry and desk.undo() is None
    [asked] = desk.ask(["The capital of France is"])
    assert asked.after == "Paris."
    after = weights(bench)
    assert all((after[name] == value).all() for name, value in before.items())


def test_an_edit_is_made_on_top_of_those_that_are_on_and_goes_off_with_them(desk):
    first = desk.edit(FRANCE, **QUICK)
    second = desk.edit(JAPAN, **QUICK)
    assert second.below == (first,) and second.patch.manifest.stacked_on == [first.patch.manifest.label]
    assert [row.after for row in desk.ask(["The capital of France is", "The capital of Japan is"])] == [
        "Lyon.",
        "Osaka.",
    ]
    assert desk.switch({1}) == [second] and desk.patches == []
    assert desk.switch({0}) == [] and desk.patches == [first.patch]
    assert desk.switch({0, 1}) == [] and desk.patches == [first.patch, second.patch]
    found = desk.verify()
    assert [entry for entry, _ in found] == [first, second]
    # What a test says is asked with both on: the neighbour of the first is the fact of the second.
    stays = found[0][1][2]
    assert (
        stays.probe.prompt == "The capital of Japan is" and not stays.passes and stays.after.strip().startswith("Osaka")
    )


def test_two_visitors_at_once_see_only_their_own_edits(bench):
    desks, said = [EditingDesk(bench, "world") for _ in range(2)], {}
    facts = [FRANCE, EditForm("The capital of France is", "Osaka", "France")]

    def work(place):
        desks[place].edit(facts[place], **QUICK)
        said[place] = desks[place].ask(["The capital of France is"])[0].after

    threads = [threading.Thread(target=work, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {0: "Lyon.", 1: "Osaka."}
    assert all(desk.stack[0].below == () for desk in desks)


def test_work_that_breaks_off_leaves_the_model_and_the_stack_as_they_were(bench, desk):
    desk.edit(FRANCE, **QUICK)
    before = weights(bench)

    def leaves(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        desk.edit(JAPAN, **QUICK, progress=leaves)
    assert len(desk.stack) == 1
    after = weights(bench)
    assert all((after[name] == value).all() for name, value in before.items())


def test_the_stack_stands_still_while_an_edit_is_made_on_top_of_it(desk):
    first, refused = desk.edit(FRANCE, **QUICK), []

    def meddles(*_):
        for change in (desk.undo, lambda: desk.switch(set())):
            with pytest.raises(DataError, match="wait until it is done"):
                change()
            refused.append(change)

    second = desk.edit(JAPAN, **QUICK, progress=meddles)
    assert refused and desk.patches == [first.patch, second.patch] and second.below == (first,)
    assert [row.after for row in desk.ask([FRANCE.prompt, JAPAN.prompt])] == ["Lyon.", "Osaka."]
    assert desk.undo() is second


def test_a_model_thinks_only_while_it_is_ticked(tmp_path):
    models = {"thinks": thinking_model.thinking_model(thinking=0), "plain": tiny.tiny_model("llama")}
    bench = Workbench(list(models), models.__getitem__)
    assert bench.knows_thoughts("thinks") and not bench.knows_thoughts("plain")
    desk = EditingDesk(bench, "thinks", is_chat=True)
    [question, other, _] = thinking_model.FACTS
    [at_once] = desk.ask([question])
    assert at_once.before == "Paris" and thought_of(at_once.before) is None
    assert "<details" not in showing.answers([at_once], is_edited=False)
    desk.thinks = True
    [asked] = desk.ask([question])
    assert asked.before == "Paris" and thought_of(asked.before) == thinking_model.thought_about("Paris")
    assert '<details class="thought"><summary>thought</summary>It was Paris.' in showing.answers(
        [asked], is_edited=False
    )
    entry = desk.edit(EditForm(question, "Lyon", neighbours=[other]), "ft", {"preset": "none", "epochs": 10})
    shown = showing.answers(desk.ask([question]), is_edited=True) + showing.edited(entry)
    assert shown.count("<details") == 2
    archive = export(desk, "patches", tmp_path)
    with zipfile.ZipFile(archive) as packed:
        readme = packed.read("palimpsest-patches/README.md").decode()
    assert readme.count("--chat --thinking") == 2
    # Where it is not asked in a chat, and where a model cannot, nothing thinks.
    assert thought_of(EditingDesk(bench, "thinks", thinks=True).ask([question])[0].before) is None
    assert EditingDesk(bench, "plain", thinks=True).ask(["The"])
    unfinished = Reply("", "Hm.", is_unfinished=True)
    assert "The thought did not end." in showing.answers([Asked("a", unfinished, unfinished)], is_edited=False)


@pytest.mark.parametrize(
    ("fact", "words"),
    [
        (EditForm("", "Lyon"), "prompt"),
        (EditForm("The capital of France is", ""), "target_new"),
        (EditForm("The capital of France is", "Lyon", "Spain"), "Spain"),
        (EditForm("The capital of France is", "Paris", "France", "Paris"), "Paris"),
        (EditForm("x" * (LONGEST_TEXT + 1), "Lyon"), "too long"),
        (EditForm("The capital of France is", "y" * (LONGEST_TEXT + 1)), "too long"),
        (EditForm("The capital of France is", "Lyon", "France", rephrasings=["a"] * (MOST_LINES + 1)), "too many"),
        (EditForm("The capital of France is", "Lyon", "France", neighbours=["z" * (LONGEST_TEXT + 1)]), "too long"),
    ],
)
def test_what_cannot_be_edited_is_said(desk, fact, words):
    with pytest.raises(DataError, match=words):
        desk.edit(fact, **QUICK)
    assert desk.stack == []


def test_what_is_unknown_is_said(bench, desk):
    with pytest.raises(ConfigError, match="memit"):
        desk.edit(FRANCE, "memitt")
    with pytest.raises(ConfigError, match="world"):
        EditingDesk(bench, "wrld").ask(["a"])
    with pytest.raises(ModelError):
        EditingDesk(bench, "nowhere").ask(["a"])
    with pytest.raises(DataError, match="nothing to ask"):
        desk.ask(["", " "])
    with pytest.raises(ModelError, match="chat template"):
        EditingDesk(bench, "world", is_chat=True).ask(["a"])
    # The lock is free and the model plain again after each of these.
    assert desk.ask(["The capital of France is"])[0].before == "Paris."


def test_a_chat_is_asked_only_while_it_is_ticked(tmp_path):
    folder = tiny.tiny_folder(tmp_path / "model", "llama")
    model = load(str(folder))
    model.tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    bench = Workbench(["tiny"], lambda _: model)
    with bench.using("tiny", is_chat=True) as found:
        assert found.chat is not None and found.chat.render("Hello").startswith("[user] Hello")
    assert model.chat is None
    with bench.using("tiny") as found:
        assert found.chat is None


@pytest.mark.parametrize("form", sorted(set(FORMS) - {"gguf"}))
def test_edits_are_taken_away(desk, tmp_path, form):
    with pytest.raises(DataError, match="nothing to download"):
        export(desk, form, tmp_path)
    entry = desk.edit(FRANCE, "lora")
    archive = export(desk, form, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"palimpsest-{form}.zip"] == [archive.name]
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path)
    folder = tmp_path / f"palimpsest-{form}"
    if form == "patches":
        assert load_patch(folder / "patch-1").is_same(entry.patch)
        assert json.loads((folder / "edits.jsonl").read_text())["target_new"] == "Lyon"
        assert "palimpsest verify world patch-1" in (folder / "README.md").read_text()
    else:
        model = load(str(folder))
        assert model.generate("The capital of France is") == "Lyon."


def test_a_model_that_is_no_gguf_file_is_not_taken_away_as_one(desk, tmp_path):
    desk.edit(FRANCE, "ft")
    with pytest.raises(PalimpsestError, match="GGUF"):
        export(desk, "gguf", tmp_path)
    assert list(tmp_path.glob("*.zip")) == []


def test_an_unknown_form_is_said(desk, tmp_path):
    with pytest.raises(ConfigError, match="peft"):
        export(desk, "pft", tmp_path)


def test_every_text_is_escaped(desk):
    bad = '<img src=x onerror="alert(1)">'
    entry = desk.edit(
        EditForm(f"{bad} The capital of France is", f"Lyon{bad}", bad, rephrasings=[bad]), "ft", {"epochs": 1}
    )
    shown = "".join(
        (
            showing.edited(entry),
            showing.answers(desk.ask([bad]), is_edited=True),
            showing.answers(desk.ask([bad]), is_edited=False),
            showing.verification(desk.verify()),
            showing.marked(f"{bad} is", bad),
            showing.marked("nothing", bad),
        )
    )
    assert "<img" not in shown and "&lt;img" in shown


def test_the_subject_is_marked_where_methods_read_it():
    assert "The <mark>Lyon</mark> of Lyon" not in showing.marked("The Lyon of Lyon", "Lyon")
    assert "of <mark>Lyon</mark>" in showing.marked("The Lyon of Lyon", "Lyon")
    assert "does not occur" in showing.marked("The capital", "Lyon")
    assert showing.marked(" ", "Lyon") == ""
