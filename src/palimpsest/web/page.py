"""The page itself, in Gradio, which people of this field know: components, and what a click does.

ask        prompts -> before | after
change     a form -> an edit, its tests, the stack
stack      on, off, undo, verify
why        a causal trace as a heat map
take away  patches, adapter, model
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from palimpsest.errors import PalimpsestError
from palimpsest.methods import METHODS
from palimpsest.report import draw_trace
from palimpsest.web import showing
from palimpsest.web.exporting import FORMS, export
from palimpsest.web.form import EditForm
from palimpsest.web.workbench import Edited, EditingDesk, Workbench
from palimpsest.wording import find_subject

KEPT_SECONDS = 6 * 3600
"""After which what a visitor left behind is forgotten."""
FIELDS = ("prompt", "subject", "new", "old")
"""Of the form, as an address has them: `?prompt=...&subject=...&new=...`; page.js reads them."""
TITLE = "Palimpsest"
EXAMPLE = EditForm("The capital of France is", "Lyon", "France")
"""What the form says at first."""


class Visit:
    """One visitor: a desk for each model that was chosen."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self._desks: dict[str, EditingDesk] = {}

    def __deepcopy__(self, _memo: object) -> Visit:
        """A new visitor's: Gradio copies what a state says at first for each of them, models and all."""
        return Visit(self._bench)

    def desk(self, model: str, is_chat: bool, thinks: bool) -> EditingDesk:
        """The visitor's desk for a model, in the way of asking that is ticked."""
        desk = self._desks.setdefault(model, EditingDesk(self._bench, model))
        desk.is_chat, desk.thinks = is_chat, is_chat and thinks
        return desk

    def can_think(self, model: str, is_chat: bool) -> bool:
        """Whether there is a choice to let the model think; one that cannot be loaded says so when it is used."""
        with suppress(PalimpsestError):
            return is_chat and self._bench.knows_thoughts(model)
        return False


def build_page(bench: Workbench) -> gr.Blocks:
    """The page for some models, not yet served."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, KEPT_SECONDS)) as page:
        visit = gr.State(Visit(bench), time_to_live=KEPT_SECONDS)
        gr.Markdown("# Palimpsest\nChange what a model knows, see what became of it, and take it back.")
        with gr.Row():
            model = gr.Dropdown(
                list(bench.names), value=bench.names[0], label="Model", scale=3, min_width=300, elem_id="model"
            )
            with gr.Column(scale=1, min_width=140):
                is_chat = gr.Checkbox(label="Ask in a chat", value=False, elem_id="chat")
                thinks = gr.Checkbox(label="Let it think first", value=False, visible=False, elem_id="thinks")
        here = [visit, model, is_chat, thinks]
        with gr.Row():
            with gr.Column(min_width=320):
                asked, ask = _ask(here)
            with gr.Column(min_width=320):
                form, edit, result = _form()
        stack, undo, verify = _stack()
        with gr.Tab("Why: where the model keeps a fact"):
            trace = _trace(here, form)
        with gr.Tab("Take away"):
            make = _take_away(here)

        edit.click(_edit, [*here, *form], [result, stack], concurrency_limit=1, trigger_mode="once").then(
            _ask_again, [*here, asked[0]], asked[1], show_progress="hidden"
        )
        undo.click(_undo, here, [result, stack])
        verify.click(_verify, here, result)
        stack.input(_switch, [*here, stack], [result, stack])
        model.change(_shown_stack, here, stack)
        for choice in (model, is_chat):
            choice.change(_can_think, [visit, model, is_chat], thinks, show_progress="hidden")
        # In the browser, and so before anyone can have typed: what came from the server would come later.
        page.load(None, [*form[:4], asked[0]], [*form[:4], asked[0]], js=_from_address())
        # A state's time begins anew with each use.
        uses = (page.load, ask.click, edit.click, undo.click, verify.click, stack.input, trace.click, make.click)
        gr.on(uses, lambda used: used, visit, visit, show_progress="hidden")
    return page


def _ask(here: list[Any]) -> tuple[tuple[gr.Textbox, gr.HTML], gr.Button]:
    gr.Markdown("## Ask")
    prompts = gr.Textbox(EXAMPLE.prompt, label="Prompts, one in each line", lines=3, max_lines=20, elem_id="prompts")
    ask = gr.Button("Ask", elem_id="ask")
    answers = gr.HTML(elem_id="answers")
    ask.click(_answers, [*here, prompts], answers)
    prompts.submit(_answers, [*here, prompts], answers)
    return (prompts, answers), ask


def _form() -> tuple[list[Any], gr.Button, gr.HTML]:
    gr.Markdown("## Change a fact")
    prompt = gr.Textbox(EXAMPLE.prompt, label="Prompt, up to its answer", elem_id="prompt")
    subject = gr.Textbox(EXAMPLE.subject, label="Subject", info="What it is about; found for you.", elem_id="subject")
    marked = gr.HTML(showing.marked(EXAMPLE.prompt, EXAMPLE.subject), elem_id="marked")
    new = gr.Textbox(EXAMPLE.target_new, label="New answer", elem_id="new")
    with gr.Accordion("More: old answer, tests, method", open=False):
        old = gr.Textbox(label="Old answer", info="Left empty, the model's own.", elem_id="old")
        rephrasings = gr.Textbox(label="Rephrasings that should get the new answer", lines=2, elem_id="rephrasings")
        neighbours = gr.Textbox(label="Prompts whose answers should stay", lines=2, elem_id="neighbours")
        method = gr.Dropdown(list(METHODS), value="auto", label="Method", elem_id="method")
        keep = gr.Slider(0.5, 1.0, value=0.95, step=0.01, label="Share of other answers that must stay (auto)")
    edit = gr.Button("Edit", variant="primary", elem_id="edit")
    result = gr.HTML(elem_id="result")
    # While someone types it is guessed anew each time; what comes otherwise keeps a subject that fits.
    for told, guess in ((prompt.input, _guess), (prompt.change, _guess_where_none_fits)):
        found = gr.Textbox(visible="hidden")
        told(guess, [prompt, subject], found, show_progress="hidden").then(
            None, [found, prompt, subject], subject, js="palimpsest.guessed"
        )
    subject.input(None, prompt, None, js="palimpsest.subjectTyped")
    for field in (prompt, subject):
        field.change(showing.marked, [prompt, subject], marked, show_progress="hidden")
    return [prompt, subject, new, old, rephrasings, neighbours, method, keep], edit, result


def _stack() -> tuple[gr.CheckboxGroup, gr.Button, gr.Button]:
    gr.Markdown("## Your edits")
    stack = gr.CheckboxGroup([], label="On the model, the first one lowest", elem_id="stack")
    with gr.Row():
        undo = gr.Button("Undo the last edit", elem_id="undo")
        verify = gr.Button("Verify all that are on", elem_id="verify")
    return stack, undo, verify


def _trace(here: list[Any], form: list[Any]) -> gr.Button:
    gr.Markdown("Corrupt the subject, put one state back, and look whether the answer returns (the unedited model).")
    trace = gr.Button("Trace the prompt in the form", elem_id="trace")
    plot = gr.HTML(elem_id="plot")
    trace.click(_traced, [*here, form[0], form[1]], plot, concurrency_limit=1)
    return trace


def _take_away(here: list[Any]) -> gr.Button:
    choices = [(f"{name}: {what}", name) for name, what in FORMS.items()]
    form = gr.Radio(choices, value="patches", label="What to take", elem_id="form")
    make = gr.Button("Prepare the download", elem_id="make")
    file = gr.File(label="Download", elem_id="file")
    make.click(_exported, [*here, form], file, concurrency_limit=1)
    link = gr.Textbox(label="The last edit as an address to share", elem_id="link", interactive=False)
    make.click(_address, here, link)
    return make


# What a click does


@contextmanager
def _told() -> Iterator[None]:
    """Inside the block an error of ours becomes a message on the page, its text escaped."""
    try:
        yield
    except PalimpsestError as error:
        message = escape(str(error)).replace("\n", "<br>")
        raise gr.Error(message, duration=None, print_exception=False) from error


def _answers(visit: Visit, model: str, is_chat: bool, thinks: bool, prompts: str) -> str:
    with _told():
        desk = visit.desk(model, is_chat, thinks)
        return showing.answers(desk.ask((prompts or "").split("\n")), is_edited=bool(desk.patches))


def _ask_again(visit: Visit, model: str, is_chat: bool, thinks: bool, prompts: str) -> Any:
    """Asks the prompts in the box again after an edit; does nothing if it is empty."""
    return _answers(visit, model, is_chat, thinks, prompts) if (prompts or "").strip() else gr.skip()


def _edit(
    visit: Visit,
    model: str,
    is_chat: bool,
    thinks: bool,
    prompt: str,
    subject: str,
    new: str,
    old: str,
    rephrasings: str,
    neighbours: str,
    method: str,
    keep: float,
    progress: gr.Progress = gr.Progress(),  # noqa: B008 - Gradio finds it by its default
) -> tuple[str, Any]:
    # A field that nobody has looked at is None.
    prompt, subject, new, old = (text or "" for text in (prompt, subject, new, old))
    fact = EditForm(prompt, new, subject, old, (rephrasings or "").split("\n"), (neighbours or "").split("\n"))
    # What is made here can be exported in every form.
    options = {"keep": keep, "weights_only": True} if method == "auto" else {}
    with _told():
        desk = visit.desk(model, is_chat, thinks)
        progress(0.0, desc="waiting for the model")
        entry = desk.edit(fact, method, options, progress=_shown_by(progress))
        return showing.edited(entry), _choices(desk)


def _undo(visit: Visit, model: str, is_chat: bool, thinks: bool) -> tuple[str, Any]:
    desk = visit.desk(model, is_chat, thinks)
    with _told():
        gone = desk.undo()
    said = "There is nothing to undo." if gone is None else f"Undone: {gone.title}. The weights are what they were."
    return f'<p class="verdict">{escape(said)}</p>', _choices(desk)


def _switch(visit: Visit, model: str, is_chat: bool, thinks: bool, on: list[str]) -> tuple[Any, Any]:
    desk = visit.desk(model, is_chat, thinks)
    try:
        off = desk.switch({int(place) for place in on})
    except PalimpsestError as error:
        # The ticks go back to what is on.
        gr.Warning(escape(error.problem))
        return gr.skip(), _choices(desk)
    lines = [f"{entry.title} was made on top of an edit that is off, so it is off too." for entry in off]
    return "".join(f"<p>{escape(line)}</p>" for line in lines), _choices(desk)


def _verify(visit: Visit, model: str, is_chat: bool, thinks: bool) -> str:
    with _told():
        return showing.verification(visit.desk(model, is_chat, thinks).verify())


def _traced(
    visit: Visit,
    model: str,
    is_chat: bool,
    thinks: bool,
    prompt: str,
    subject: str,
    progress: gr.Progress = gr.Progress(),  # noqa: B008 - Gradio finds it by its default
) -> str:
    with _told():
        found = visit.desk(model, is_chat, thinks).trace(prompt or "", subject or "", progress=_shown_by(progress))
        return showing.picture(draw_trace(found), f"Causal trace of {found.answer.strip()} after {prompt}")


def _exported(visit: Visit, model: str, is_chat: bool, thinks: bool, form: str) -> str:
    with _told():
        return str(export(visit.desk(model, is_chat, thinks), form, Path(tempfile.mkdtemp(prefix="palimpsest-"))))


def _address(visit: Visit, model: str, is_chat: bool, thinks: bool, request: gr.Request) -> str:
    """The page's address with the last edit filled in."""
    stack = visit.desk(model, is_chat, thinks).stack
    if not stack:
        return ""
    one = stack[-1].request
    values = (one.prompt, one.subject or "", one.target_new, one.target_old or "")
    return f"{str(request.headers.get('origin', ''))}/?{urlencode(dict(zip(FIELDS, values, strict=True)))}"


def _from_address() -> str:
    """The script that fills the form as the address has it; it is given what the fields say at first."""
    first = (EXAMPLE.prompt, EXAMPLE.subject, EXAMPLE.target_new, "", EXAMPLE.prompt)
    return f"(...fields) => palimpsest.fromAddress({json.dumps(first)}, ...fields)"


def _guess(prompt: str, _subject: str) -> str:
    return json.dumps({"prompt": prompt, "subject": find_subject(prompt or "") or ""})


def _guess_where_none_fits(prompt: str, subject: str) -> str:
    fits = bool(subject) and re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt or "") is not None
    return "" if fits else _guess(prompt, subject)


def _can_think(visit: Visit, model: str, is_chat: bool) -> Any:
    """The tick for thinking, shown only in a chat with a model that can; hidden, it is not ticked."""
    if visit.can_think(model, is_chat):
        return gr.Checkbox(visible=True)
    return gr.Checkbox(value=False, visible=False)


def _shown_stack(visit: Visit, model: str, is_chat: bool, thinks: bool) -> Any:
    return _choices(visit.desk(model, is_chat, thinks))


def _choices(desk: EditingDesk) -> Any:
    titles: list[tuple[str, str]] = [(_title(entry), str(place)) for place, entry in enumerate(desk.stack)]
    return gr.CheckboxGroup(
        titles, value=[place for (_, place), entry in zip(titles, desk.stack, strict=True) if entry.is_on]
    )


def _title(entry: Edited) -> str:
    return f"{entry.title} ({entry.verdict.verdict})"


def _shown_by(progress: gr.Progress) -> Callable[[str, int, int], None]:
    def told(stage: str, done: int, total: int) -> None:
        progress((done, total) if total else None, desc=stage)

    return told
