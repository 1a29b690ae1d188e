"""The one thread that owns the model: requests wait in line, patches change between them, one text at a time.

One text at a time makes every answer what it would be if it were the only one, bit for bit: in a batch, padding and
other rows round otherwise. Requests for the patches that lie on the model go first, a limited number of times.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from palimpsest.models import Chat, EditableModel, chosen_chat
from palimpsest.serving.names import Catalogue
from palimpsest.serving.writing import Abandoned, Piece, Wish, Written, write

MOST_THOUGHT = sys.maxsize
"""Tokens of a thought; it ends with the tokens that the request may have."""
_MOST_IN_A_ROW = 8


class TooBusyError(Exception):
    """More requests wait than may."""


class ClosedError(Exception):
    """The endpoint is shutting down."""


@dataclass(eq=False)
class TextJob:
    """A text to be written.

    Arguments:
        patches: names of the patches that are to lie on the model.
        wish: what is asked for; in a chat, the prompt is what is said last.
        chat: the texts around it; `True` for a single user's turn, put into the chat that the patches were made in or
            else into the model's template; `None` for a plain text.
        send: is given the text in pieces, in the engine's thread.
        done: is given the whole, or what went wrong, once, in the engine's thread.
        is_abandoned: set by whoever does not wait any more.
    """

    patches: tuple[str, ...]
    wish: Wish
    chat: Chat | bool | None
    send: Callable[[Piece], None]
    done: Callable[[Written | Exception], None]
    is_abandoned: threading.Event = field(default_factory=threading.Event)


class Engine:
    """Writes texts, in a thread of its own from `start` to `close`.

    Arguments:
        model: nothing else may use it in the meantime.
        catalogue: its patches.
        most_waiting: requests that may wait.
    """

    def __init__(self, model: EditableModel, catalogue: Catalogue, *, most_waiting: int = 64) -> None:
        self.model, self.catalogue, self.most_waiting = model, catalogue, most_waiting
        self.served = 0
        self._waiting: list[TextJob] = []
        self._change = threading.Condition()
        self._is_closed = False
        self._current: TextJob | None = None
        self._thread = threading.Thread(target=self._work, name="palimpsest-engine", daemon=True)
        self._chats: dict[object, Chat | None] = {}

    def start(self) -> None:
        """Begins to write."""
        self._thread.start()

    def submit(self, *jobs: TextJob) -> None:
        """Puts jobs in line, all or none. Raises `TooBusyError` where too many wait, `ClosedError` after `close`."""
        with self._change:
            if self._is_closed:
                raise ClosedError
            if len(self._waiting) + len(jobs) > self.most_waiting:
                raise TooBusyError
            self._waiting += jobs
            self._change.notify()

    @property
    def num_waiting(self) -> int:
        """Requests in line."""
        return len(self._waiting)

    def close(self) -> None:
        """Ends what is being written and what waits, takes every patch off, and waits for the thread."""
        with self._change:
            self._is_closed = True
            if self._current is not None:
                self._current.is_abandoned.set()
            self._change.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        names: tuple[str, ...] = ()
        lying, in_a_row = ExitStack(), itertools.count()
        try:
            while (job := self._next(names, next(in_a_row))) is not None:
                if job.patches != names:
                    lying.close()
                    names, in_a_row = (), itertools.count(1)
                self._current = job
                try:
                    if job.patches != names:
                        lying = self.catalogue.put_on(self.model, job.patches)
                        names = job.patches
                    self._prepare(job)
                    result: Written | Exception = write(self.model, job.wish, job.send, job.is_abandoned)
                    self.served += 1
                except Exception as error:  # whatever it is, it is this request's, and the next one is served
                    result = error
                finally:
                    self._current = None
                    self.model.chat = None
                job.done(result)
        finally:
            lying.close()
            with self._change:
                left, self._waiting = self._waiting, []
            for job in left:
                job.done(ClosedError())

    def _prepare(self, job: TextJob) -> None:
        if job.is_abandoned.is_set():
            raise Abandoned
        if job.chat is not True:
            self.model.chat = job.chat or None
            return
        texts = self.catalogue.chat_of(job.patches)
        key = None if texts is None else tuple(sorted(texts.items())), job.wish.thinks
        if key not in self._chats:
            tokens = MOST_THOUGHT if job.wish.thinks else 0
            self._chats[key] = chosen_chat(
                texts or True, self.model.tokenizer, where=f"model {self.model.name!r}", thinking=tokens
            )
        self.model.chat = self._chats[key]

    def _next(self, names: tuple[str, ...], in_a_row: int) -> TextJob | None:
        """The next job: one for the patches that lie on the model if not too many went first; `None` at the end."""
        with self._change:
            while not self._waiting and not self._is_closed:
                self._change.wait()
            if self._is_closed:
                return None
            fitting = (index for index, job in enumerate(self._waiting) if job.patches == names)
            place = next(fitting, 0) if in_a_row < _MOST_IN_A_ROW else 0
            return self._waiting.pop(place)
