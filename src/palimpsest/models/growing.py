"""A text that grows token by token: the thought, where there is one, and the answer."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from palimpsest.wording import Reply, ThoughtMarks, may_open, opened_by, parted, thought_of, thought_so_far

# Tokens at the end of a thought in which its closing mark is looked for: none is longer, one token for each byte.
_WINDOW = 32


class GrowingText:
    """What a model writes after one prompt.

    Arguments:
        tokenizer: the model's.
        ended: given the answer so far, returns the finished one, or `None` while there is more to come.
        answer_tokens: of the answer, at most.
        thought_tokens: of the thought before it, at most; 0 where none is looked for.
        opened: the form of the thought that the prompt ends by opening.
        ends: ids that end the sequence.
        turn_end: the id that ends the assistant's turn; inside a thought it may end a message of it.
        thinks: called after every token of the thought with what is certain of it, without its marks; with `None`
            where the tokens so far do not say yet whether they are a thought. Where it is given, the tokens of the
            thought are of the answer's number too.
    """

    def __init__(
        self,
        tokenizer: Any,
        ended: Callable[[str], str | None],
        *,
        answer_tokens: int,
        thought_tokens: int = 0,
        opened: ThoughtMarks | None = None,
        ends: Collection[int] = (),
        turn_end: int | None = None,
        thinks: Callable[[str | None], None] | None = None,
    ) -> None:
        self._tokenizer, self._ended = tokenizer, ended
        self._left, self._thought_left = answer_tokens, thought_tokens
        self._form, self._may_think = opened, thought_tokens > 0
        self._ends, self._turn_end, self._thinks = ends, turn_end, thinks
        self._thought_ids: list[int] = []
        self._ids: list[int] = []
        self._answer, self._between = "", ""
        self._thought: str | None = None

    def add(self, token: int) -> bool:
        """Takes the next token; whether there is more to come."""
        if self._may_think:
            return self._add_to_thought(token)
        if token in self._ends or token == self._turn_end:
            return False
        self._ids.append(token)
        self._answer = str(self._tokenizer.decode(self._ids, skip_special_tokens=True))
        if self._thought is not None:
            # What stands between a thought and its answer belongs to neither.
            whole, self._answer = self._answer, self._answer.lstrip()
            self._between = whole[: len(whole) - len(self._answer)]
        finished = self._ended(self._answer)
        if finished is not None:
            self._answer = finished
            return False
        self._left -= 1
        return self._left > 0

    @property
    def text(self) -> str:
        """The text so far; a `Reply` where the model thinks before it answers."""
        if self._may_think:
            return Reply("", self._told() or "", is_unfinished=True)
        if self._thought is not None:
            return Reply(self._answer, self._thought, written=self._whole() + self._between)
        return self._answer

    def _add_to_thought(self, token: int) -> bool:
        if token in self._ends:
            self._settle()
            return False
        self._thought_ids.append(token)
        self._thought_left -= 1
        if self._form is None:
            # Its first tokens decide whether it is a thought at all.
            text = self._whole()
            if not may_open(text):
                return self._answer_at_once()
            self._form = opened_by(text)
        if self._form is not None and self._form.closing in self._decoded(self._thought_ids[-_WINDOW:]):
            self._thought = thought_of(parted(self._whole(), self._form))
            self._may_think = False
        if self._thinks is not None:
            self._left -= 1
            self._thinks(self._told())
        return self._left > 0 and (not self._may_think or self._thought_left > 0)

    def _told(self) -> str | None:
        """The thought, as far as it is certain; `None` where nobody knows yet whether it is one."""
        return self._thought if self._form is None or not self._may_think else thought_so_far(self._whole(), self._form)

    def _settle(self) -> None:
        """At the sequence's end: what has not become a thought is the answer."""
        if self._form is None:
            self._answer_at_once()

    def _answer_at_once(self) -> bool:
        ids, self._thought_ids, self._may_think = self._thought_ids, [], False
        if self._thinks is not None:
            # All but the last were counted when they came.
            self._left += len(ids) - 1
        return all(self.add(token) for token in ids)

    def _whole(self) -> str:
        return self._decoded(self._thought_ids)

    def _decoded(self, ids: list[int]) -> str:
        # Some forms' marks are special tokens.
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))
