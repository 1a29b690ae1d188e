"""Conversations in a tokenizer's chat template, which is read once, so that each of them is rendered once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from palimpsest.errors import ModelError
from palimpsest.models.chat import QUESTION, Chat, asked_texts, changes_what_is_said, chat_of, rendered

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Conversations:
    """What a chat template makes of conversations.

    Arguments:
        tokenizer: has a chat template.
        where: names the model in errors.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, where: str) -> None:
        self._tokenizer, self._where = tokenizer, where

    @cached_property
    def knows_thoughts(self) -> bool:
        """Whether there is a template that can let the model think first."""
        try:
            return self._thinking.thinking is not None
        except ModelError:
            return False

    def of(self, turns: Sequence[Mapping[str, str]], *, thought_tokens: int = 0) -> tuple[str, Chat]:
        """What is said last in a conversation, and the chat whose texts are the rest of it.

        Arguments:
            turns: `role` and `content` of each, at least one.
            thought_tokens: see `chat_of`.

        Raises what `chat_of` raises, and what the template raises for turns that it does not take.
        """
        single = self._single if not thought_tokens else replace(self._thinking, thought_tokens=thought_tokens)
        roles = [turn["role"] for turn in turns]
        last = len(roles) - 1 - roles[::-1].index("user") if "user" in roles else len(roles) - 1
        marked = [{**turn, "content": QUESTION} if place == last else turn for place, turn in enumerate(turns)]
        thinking = single.thinking
        if thinking is None:
            before, after = self._around(marked, thinks=False)
            # Behind the last user's turn the assistant begins as it does in a chat of one turn.
            found = replace(single, before=before, after=_begun_otherwise(after, self._begins, single.after))
            return turns[last]["content"], found
        before, after = self._around(marked, thinks=True)
        found = replace(single, thinking_before=before, thinking_after=after)
        if single.before == thinking.before and after.endswith(thinking.after):
            # The template thinks where the assistant begins and nowhere else: the rest is the same without thoughts.
            at_once = _begun_otherwise(after, thinking.after, single.after)
        else:
            before, after = self._around(marked, thinks=False)
            at_once = _begun_otherwise(after, self._begins, single.after)
        return turns[last]["content"], replace(found, before=before, after=at_once)

    @cached_property
    def _single(self) -> Chat:
        return chat_of(self._tokenizer, where=self._where)

    @cached_property
    def _thinking(self) -> Chat:
        return chat_of(self._tokenizer, where=self._where, thought_tokens=1)

    @cached_property
    def _begins(self) -> str:
        """What the template itself puts behind the user's words: a thought that it begins is not closed."""
        return asked_texts(self._tokenizer, where=self._where, thinks=False)[1]

    def _around(self, marked: Sequence[Mapping[str, str]], *, thinks: bool) -> tuple[str, str]:
        text = rendered(self._tokenizer, marked, thinks=thinks)
        if text.count(QUESTION) != 1:
            raise changes_what_is_said(text, self._where)
        before, _, after = text.partition(QUESTION)
        return before, after


def _begun_otherwise(after: str, begun: str, instead: str) -> str:
    """A text with another end, where it has that one."""
    return after.removesuffix(begun) + instead if after.endswith(begun) else after
