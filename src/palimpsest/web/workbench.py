"""The actions of the page, without a page: models that visitors share, and each visitor's own stack of patches.

A model is used by one visitor at a time. While it is used, that visitor's patches lie on it; afterwards it is the
unedited one again, bit for bit, also where the work was broken off.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from palimpsest.errors import ConfigError, DataError, unknown_name
from palimpsest.evaluation import Observation, VerifiedEdit, find_scoring, room_for, verified
from palimpsest.loading import load
from palimpsest.methods import Diagnostics, method
from palimpsest.models import Conversations, chosen_chat, written_answers
from palimpsest.requests import EditRequest, Probe
from palimpsest.stopwatch import Progress, silent
from palimpsest.tracing import CausalTrace, TraceOptions, trace
from palimpsest.web.form import EditForm, lines_of, require_short

if TYPE_CHECKING:
    from palimpsest.models import Chat, EditableModel
    from palimpsest.patches import Patch

MOST_PATCHES = 100
"""On one visitor's stack."""
SHOWN_TOKENS = 40
"""Written behind a prompt that is only asked."""


@dataclass(frozen=True)
class Asked:
    """One prompt's answers: of the unedited model, and with the patches that are on."""

    prompt: str
    before: str
    after: str


@dataclass(frozen=True)
class Check:
    """One test of an edit.

    Arguments:
        before: what the unedited model wrote.
        after: what the model writes with the patches.
        passes: whether the new answer is given, or, for a neighbour, whether the answer stayed.
    """

    probe: Probe
    before: str
    after: str
    passes: bool


@dataclass
class Edited:
    """One patch on a visitor's stack, with how it went.

    Arguments:
        verdict: what the model answered before and answers now.
        checks: the edit's own tests, the prompt itself first.
        below: the edits that were on when this one was made; it needs them under it.
        is_on: whether it is put on the model.
    """

    request: EditRequest
    patch: Patch
    verdict: VerifiedEdit
    checks: list[Check]
    diagnostics: Diagnostics
    below: tuple[Edited, ...] = ()
    is_on: bool = True

    @property
    def title(self) -> str:
        """The fact in one line."""
        return f"{self.request.prompt.rstrip()} \u2192 {self.request.target_new}"


class Workbench:
    """Models by name, loaded when they are first used, each used by one visitor at a time.

    Arguments:
        names: what may be chosen: folders, GGUF files, hub ids, bundled models.
        read: from a name to the model; `palimpsest.load` if left out.
    """

    def __init__(self, names: Sequence[str], read: Callable[[str], EditableModel] = load) -> None:
        self.names = tuple(dict.fromkeys(names))
        self._read = read
        self._models: dict[str, EditableModel] = {}
        self._chats: dict[tuple[str, bool], Chat | None] = {}
        self._thinkers: dict[str, bool] = {}
        self._lock = threading.Lock()
        self._is_ending = threading.Event()

    @contextmanager
    def using(
        self, name: str, patches: Sequence[Patch] = (), *, is_chat: bool = False, thinks: bool = False
    ) -> Iterator[EditableModel]:
        """Inside the block a model is this visitor's alone, with patches on it, the first one lowest.

        Arguments:
            is_chat: whether prompts are put into its chat template.
            thinks: whether it then thinks before it answers; without effect where its template knows no thoughts.

        Raises `ConfigError` for a name that was not given and after `end`, `ModelError` for a model that cannot be
        loaded or has no chat template, `PatchError` for a patch that does not fit.
        """
        if name not in self.names:
            raise unknown_name("model", name, self.names)
        with self._lock:
            self._require_open()
            model = self._loaded(name)
            former = model.chat
            try:
                model.chat = self._chat(name, model, thinks=thinks) if is_chat else None
                with model.patched(*patches):
                    yield model
            finally:
                model.chat = former

    def end(self, patience: float) -> bool:
        """Lets no work begin any more and breaks off what is at work, where that next says how far it is.

        Arguments:
            patience: seconds to wait for it.

        Returns whether nothing is at work any more.
        """
        self._is_ending.set()
        if not self._lock.acquire(timeout=patience):
            return False
        self._lock.release()
        return True

    def heeding(self, progress: Progress) -> Progress:
        """The same progress, which breaks the work off after `end`."""

        def told(stage: str, done: int, total: int) -> None:
            self._require_open()
            progress(stage, done, total)

        return told

    def _require_open(self) -> None:
        if self._is_ending.is_set():
            raise ConfigError("The page is being ended.", expected="one that is served", found="a signal to end it")

    def _loaded(self, name: str) -> EditableModel:
        if name not in self._models:
            self._models[name] = self._read(name)
        return self._models[name]

    def knows_thoughts(self, name: str) -> bool:
        """Whether a model can think before it answers. Raises what `using` raises."""
        if name not in self._thinkers:
            with self.using(name) as model:
                return self._can_think(name, model)
        return self._thinkers[name]

    def _can_think(self, name: str, model: EditableModel) -> bool:
        if name not in self._thinkers:
            self._thinkers[name] = Conversations(model.tokenizer, where=f"model {name!r}").knows_thoughts
        return self._thinkers[name]

    def _chat(self, name: str, model: EditableModel, *, thinks: bool) -> Chat | None:
        thinks = thinks and self._can_think(name, model)
        if (name, thinks) not in self._chats:
            self._chats[name, thinks] = chosen_chat(True, model.tokenizer, where=f"model {name!r}", thinking=thinks)
        return self._chats[name, thinks]


@dataclass
class EditingDesk:
    """One visitor's work on one model: a stack of edits, each of which can be switched off and taken away.

    Arguments:
        is_chat: whether it is asked in its chat template.
        thinks: whether it then thinks before it answers.
    """

    bench: Workbench
    model: str
    is_chat: bool = False
    thinks: bool = False
    stack: list[Edited] = field(default_factory=list)
    _editing: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def using(self, patches: Sequence[Patch] = ()) -> AbstractContextManager[EditableModel]:
        """The model with patches, in the desk's way of asking; see `Workbench.using`."""
        return self.bench.using(self.model, patches, is_chat=self.is_chat, thinks=self.thinks)

    @property
    def patches(self) -> list[Patch]:
        """Those that are on, the first one lowest."""
        return [entry.patch for entry in self.stack if entry.is_on]

    def ask(self, prompts: Sequence[str], *, max_new_tokens: int = SHOWN_TOKENS) -> list[Asked]:
        """Returns the unedited and the patched model's answers. Raises `DataError` for no prompt at all."""
        prompts = lines_of(prompts, "prompts")
        if not prompts:
            raise DataError("There is nothing to ask.", expected="a prompt in each line", found="no text")

        def said(patches: Sequence[Patch]) -> list[str]:
            with self.using(patches) as model:
                return model.generate(prompts, max_new_tokens=max_new_tokens)

        before = said(())
        after = said(self.patches) if self.patches else before
        return [Asked(*row) for row in zip(prompts, before, after, strict=True)]

    def edit(
        self, fact: EditForm, name: str = "auto", options: dict[str, Any] | None = None, progress: Progress = silent
    ) -> Edited:
        """Makes a patch on top of those that are on, tests it, and puts it on the stack.

        Raises `DataError` for a fact that cannot be edited and a full stack, `ConfigError` for a method or an option
        that is unknown. The stack is then as it was.
        """
        with self._editing:
            return self._edit(fact, name, options, progress)

    def _edit(self, fact: EditForm, name: str, options: dict[str, Any] | None, progress: Progress) -> Edited:
        if len(self.stack) >= MOST_PATCHES:
            raise DataError(
                "The stack is full.", expected=f"at most {MOST_PATCHES} edits", found="one more", remedy="undo some"
            )
        request, maker = fact.request(), method(name, **(options or {}))
        progress = self.bench.heeding(progress)
        maker.check([request])
        below = tuple(entry for entry in self.stack if entry.is_on)
        with self.using([entry.patch for entry in below]) as model:
            outcome = maker.edit(model, [request], progress=progress)
            progress("testing", 0, 1)
            before = _replies(model, [request])
            with model.patched(outcome.patch):
                after = _replies(model, [request])
            checks = _checks(request, before, after, is_chat=self.is_chat)
            (verdict,) = verified(model, [request], [checks[0].before], [checks[0].after])
            progress("testing", 1, 1)
        entry = Edited(request, outcome.patch, verdict, checks, outcome.diagnostics, below)
        self.stack.append(entry)
        return entry

    def undo(self) -> Edited | None:
        """Takes the last edit off the stack for good. Raises `DataError` while an edit is being made on top of it."""
        with self._at_rest():
            return self.stack.pop() if self.stack else None

    def switch(self, on: set[int]) -> list[Edited]:
        """Puts on the edits of these places and takes the others off.

        An edit that was made on top of others needs them: it goes off with any of them. Returns those that went off so.

        Raises `DataError` while an edit is being made on top of them.
        """
        gone = []
        with self._at_rest():
            for place, entry in enumerate(self.stack):
                entry.is_on = place in on and all(lower.is_on for lower in entry.below)
                if place in on and not entry.is_on:
                    gone.append(entry)
        return gone

    @contextmanager
    def _at_rest(self) -> Iterator[None]:
        if not self._editing.acquire(blocking=False):
            raise DataError(
                "An edit is being made on top of these.",
                expected="a stack that no edit is being made on",
                found="one that is",
                remedy="wait until it is done",
            )
        try:
            yield
        finally:
            self._editing.release()

    def verify(self) -> list[tuple[Edited, list[Check]]]:
        """The tests of all edits that are on, with all of them on the model, beside the unedited model's answers."""
        chosen = [entry for entry in self.stack if entry.is_on]
        requests = [entry.request for entry in chosen]
        if not requests:
            return []
        with self.using() as model:
            before = _replies(model, requests)
        with self.using(self.patches) as model:
            after = _replies(model, requests)
        return [(entry, _checks(entry.request, before, after, is_chat=self.is_chat)) for entry in chosen]

    def trace(self, prompt: str, subject: str, *, progress: Progress = silent, **options: Any) -> CausalTrace:
        """Which states of the unedited model carry a fact.

        Arguments:
            options: see `tracing.TraceOptions`.
        """
        require_short(prompt, "prompt")
        chosen = TraceOptions.parse(options, owner="causal trace")
        with self.using() as model:
            return trace(model, prompt, subject, options=chosen, progress=self.bench.heeding(progress))


def _replies(model: EditableModel, requests: Sequence[EditRequest]) -> dict[str, str]:
    """Generates texts after every prompt that tests some edits, for judging."""
    prompts = list(dict.fromkeys(probe.prompt for request in requests for probe in request.all_probes()))
    texts = written_answers(model, prompts, room_for(model, requests, None))
    return dict(zip(prompts, texts, strict=True))


def _checks(request: EditRequest, before: Mapping[str, str], after: Mapping[str, str], *, is_chat: bool) -> list[Check]:
    found, scoring = [], find_scoring("generate")
    for probe in request.all_probes():
        texts = before[probe.prompt], after[probe.prompt]
        seen = [Observation(text, is_chat=is_chat) for text in texts]
        found.append(Check(probe, *texts, passes=scoring.value(request, probe, *seen).value == 1.0))
    return found
