"""Thoughts: what a model writes before its answer, and where in a text the answer begins."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class ThoughtMarks:
    """The texts around a thought.

    Arguments:
        opening: begins it, as the first thing that a model writes or as the last thing that a chat template does.
        closing: ends it; the answer is what follows.
    """

    opening: str
    closing: str


FORMS = (
    ThoughtMarks("<think>", "</think>"),  # Qwen3, DeepSeek-R1, SmolLM3, GLM
    ThoughtMarks("<|channel|>", "<|channel|>final<|message|>"),  # harmony, gpt-oss: every other channel is a thought
    ThoughtMarks("[THINK]", "[/THINK]"),  # Magistral
    ThoughtMarks("<seed:think>", "</seed:think>"),  # Seed-OSS
)
_MESSAGE, _TURN_MARKS = "<|message|>", ("<|start|>", "<|end|>", "<|return|>")
_ENDED = re.compile(r"<\|(?:end|return)\|>")
# What harmony puts around the messages of a thought.
_CHANNEL = r"<\|channel\|>[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>"
_FRAME = re.compile(rf"(?:<\|(?:start|end|return)\|>(?:assistant)?|{_CHANNEL})+")


class Reply(str):
    """An answer, as text, with the thought that was written before it.

    A thought that has not ended is no answer: the text is then empty.

    Arguments:
        answer: what follows the thought.
        thought: without its marks.
        is_unfinished: whether it has not ended.
        written: it as it was written, up to the answer.
    """

    __slots__ = ("is_unfinished", "thought", "written")

    thought: str
    is_unfinished: bool
    written: str

    def __new__(cls, answer: str, thought: str, *, is_unfinished: bool = False, written: str = "") -> Reply:
        made = super().__new__(cls, "" if is_unfinished else answer)
        made.thought, made.is_unfinished, made.written = thought, is_unfinished, written
        return made

    def __getnewargs_ex__(self) -> tuple[tuple[str, str], dict[str, bool | str]]:
        return (str(self), self.thought), {"is_unfinished": self.is_unfinished, "written": self.written}

    def strip(self, chars: str | None = None, /) -> Reply:
        """The answer without surrounding spaces, with its thought."""
        return Reply(super().strip(chars), self.thought, is_unfinished=self.is_unfinished, written=self.written)


def parted(text: str, opened: ThoughtMarks | None = None) -> str:
    """A text that a model wrote: as it is where it has no thought, else the answer as a `Reply`.

    The answer follows the first mark that closes the thought. A thought is open from the text's beginning where the
    text begins with an opening mark, where the chat template had opened one, and where a mark closes what nothing
    opened.

    Arguments:
        text: with its special tokens, which are the marks of some forms.
        opened: the form of a thought that was open before the text began.
    """
    body = text.lstrip()
    form = opened or opened_by(body) or closed_by(body)
    if form is None:
        return text
    head, closing, answer = body.partition(form.closing)
    return Reply(_ENDED.split(answer)[0].strip() if closing else "", _thought_in(head, form), is_unfinished=not closing)


def thought_so_far(text: str, form: ThoughtMarks) -> str:
    """The part of a thought that is certain while it grows, without marks: what follows only adds to it.

    Arguments:
        text: what a model has written, with its special tokens, in which the thought is not closed.
        form: the thought's.
    """
    body = text.lstrip()
    if form.opening.startswith("<|"):
        # Between its messages stands a frame, of which nothing is the thought's.
        begun = body.rfind(_MESSAGE) + len(_MESSAGE) if _MESSAGE in body else 0
        frame = body.find("<|", begun)
        body = body if frame < 0 else body[:frame]
    body = body.rstrip("\ufffd")
    return _thought_in(body[: len(body) - beginning_of(body, (form.opening, form.closing, *_TURN_MARKS))], form)


def beginning_of(text: str, marks: Iterable[str]) -> int:
    """How many characters at a text's end may be the beginning of one of some marks."""
    lengths = (length for mark in marks for length in range(1, len(mark)) if text.endswith(mark[:length]))
    return max(lengths, default=0)


def _thought_in(text: str, form: ThoughtMarks) -> str:
    # A model may write the mark again that the template has written already.
    return _FRAME.sub("\n", text).strip().removeprefix(form.opening).strip()


def opened_by(text: str) -> ThoughtMarks | None:
    """The form of the thought that a text begins with."""
    return next((form for form in FORMS if text.lstrip().startswith(form.opening)), None)


def left_open(text: str) -> ThoughtMarks | None:
    """The form of the thought that a text ends by opening, as the generation prompts of some chat templates do."""
    return next((form for form in FORMS if text.rstrip().endswith(form.opening)), None)


def closed_by(text: str) -> ThoughtMarks | None:
    """The form whose closing mark stands in a text."""
    return next((form for form in FORMS if form.closing in text), None)


def may_open(text: str) -> bool:
    """Whether a text that still grows is a thought's beginning or may become one."""
    body = text.lstrip()
    return any(form.opening.startswith(body) or body.startswith(form.opening) for form in FORMS)


def thought_of(text: str | None) -> str | None:
    """The thought that was written before an answer; `None` where there was none."""
    return text.thought if isinstance(text, Reply) else None


def is_unfinished(text: str | None) -> bool:
    """Whether a thought did not end, so that there is no answer to judge."""
    return isinstance(text, Reply) and text.is_unfinished
