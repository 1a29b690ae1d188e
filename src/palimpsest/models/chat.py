"""Chat templates: what a tokenizer writes around a user's words, and how the assistant's answer follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from palimpsest.errors import ConfigError, ModelError
from palimpsest.models.templates import has_chat_template, render_chat
from palimpsest.wording import ThoughtMarks, closed_by, left_open

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Stand for a message while the template is read; no template treats them in a way of its own.
QUESTION, _ANSWER = "Xq7question", "Xq7answer"
THOUGHT_TOKENS = 1024
"""Tokens that a thought may have where nothing else is said."""
ChatRecord = dict[str, str | int]
"""A chat as patches and runs keep it; see `Chat.to_dict`."""


@dataclass(frozen=True)
class Thinking:
    """How a model is asked that thinks before it answers: `before`, the prompt, `after`, the thought, the answer.

    Arguments:
        before: everything up to the user's words.
        after: from there to where the assistant begins; some templates begin the thought there.
        tokens: of the thought, at most.
    """

    before: str
    after: str
    tokens: int

    @property
    def opened(self) -> ThoughtMarks | None:
        """The form of the thought that the template begins; `None` where the model begins it."""
        return left_open(self.after)


@dataclass(frozen=True)
class Chat:
    """A chat of one turn, as text: `before`, the prompt, `after`, `separator`, the answer, `end`.

    Edits are made and probabilities read behind these texts, where the answer comes at once: a thought that the
    template begins is closed. What a model writes is asked for behind those of `thinking`, where it thinks.

    Arguments:
        before: everything up to the user's words, beginning-of-sequence and system prompt included.
        after: from there to where the assistant begins its answer: the generation prompt, with an empty thought where
            the template has one.
        separator: white space that the template puts between that and the answer; mostly none.
        end: what follows the answer.
        thinking_before: `before` where the model thinks first; empty where it does not.
        thinking_after: `after` likewise.
        thought_tokens: of the thought, at most; 0 where the model answers at once.
    """

    before: str
    after: str
    separator: str = ""
    end: str = ""
    thinking_before: str = ""
    thinking_after: str = ""
    thought_tokens: int = 0

    @property
    def thinking(self) -> Thinking | None:
        """How it is asked to think; `None` where it answers at once."""
        if self.thought_tokens <= 0 or not self.thinking_after:
            return None
        return Thinking(self.thinking_before, self.thinking_after, self.thought_tokens)

    def asked(self) -> Chat:
        """The chat with the texts around a prompt that is asked, not scored."""
        found = self.thinking
        return self if found is None else Chat(found.before, found.after, end=self.end)

    def behind(self, thought: str) -> Chat:
        """The chat in which an answer follows a thought, which is given as the model wrote it with its marks."""
        found = self.asked()
        return replace(found, after=found.after + thought)

    def at_once(self) -> Chat:
        """The chat without thinking."""
        return replace(self, thinking_before="", thinking_after="", thought_tokens=0)

    def render(self, prompt: str) -> str:
        """The prompt as the user's turn, followed by the generation prompt."""
        return f"{self.before}{prompt}{self.after}"

    def end_id(self, tokenizer: PreTrainedTokenizerBase) -> int | None:
        """The token that ends the assistant's turn, if it is one of the tokenizer's special or added ones."""
        ids = tokenizer(self.end.strip(), add_special_tokens=False)["input_ids"]
        added = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
        return int(ids[0]) if ids and ids[0] in added else None

    def to_dict(self) -> ChatRecord:
        """Its texts, JSON-ready; `Chat(**found)` reads them back. Those of thinking only where it thinks."""
        shown = fields(self) if self.thinking else fields(self)[:4]
        return {field.name: getattr(self, field.name) for field in shown}


def chat_of(tokenizer: PreTrainedTokenizerBase, *, where: str, thought_tokens: int = 0) -> Chat:
    """Reads how a tokenizer's chat template writes one question and its answer.

    Arguments:
        thought_tokens: how long the model may think before it answers; 0 for an answer at once, with the empty thought
            that the template writes or, where it begins one, with that one closed.

    Raises `ModelError` for a tokenizer without a template, for a template that does not simply put its texts around
    what was said, and for thinking where the template knows no thoughts.
    """
    if not has_chat_template(tokenizer):
        raise ModelError(
            "The tokenizer has no chat template.",
            expected="a model made for conversations, whose tokenizer has a chat_template",
            found=f"a {type(tokenizer).__name__} without one",
            where=where,
            remedy="leave chat out, or take the model's instruction-tuned version",
        )
    before, after = asked_texts(tokenizer, where=where, thinks=False)
    prefix = f"{before}{QUESTION}{after}"
    answered = _apply(tokenizer, QUESTION, _ANSWER, where=where)
    rest = answered.removeprefix(prefix) if answered.startswith(prefix) else answered.partition(QUESTION)[2]
    between, _, end = rest.partition(_ANSWER)
    if answered.count(_ANSWER) != 1:
        raise changes_what_is_said(answered, where)
    opened = left_open(after)
    if opened is not None:
        after = f"{after.rstrip()}\n\n{opened.closing}\n\n"
    elif between.strip() and closed_by(between) and answered.startswith(prefix):
        after, between = after + between, ""
    chat = Chat(before, after, "" if between.strip() else between, end)
    return chat if thought_tokens == 0 else _thinking(chat, tokenizer, thought_tokens, where)


def chosen_chat(
    chat: bool | Chat | Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    where: str,
    thinking: bool | int | None = None,
) -> Chat | None:
    """The chat to use: the template's for `True`, none for `False`, else the one that is given, as a patch keeps it.

    Arguments:
        thinking: whether the model thinks before it answers, or in how many tokens at most; left out, as a given chat
            says, and not at all otherwise. Thinking takes the template where no chat is given.

    Raises `ConfigError` for a negative number, and what `chat_of` raises.
    """
    if thinking is not None and thinking < 0:
        raise ConfigError(
            "A thought cannot have fewer tokens than none.", expected="0 or more", found=str(thinking), where="thinking"
        )
    given = Chat(**chat) if isinstance(chat, Mapping) else chat
    tokens = THOUGHT_TOKENS if thinking is True else int(thinking or 0)
    if isinstance(given, Chat):
        if thinking is None or tokens == given.thought_tokens:
            return given
        if not tokens:
            return given.at_once()
        if given.thinking is not None:
            return given if thinking is True else replace(given, thought_tokens=tokens)
        return _thinking(given, tokenizer, tokens, where)
    return chat_of(tokenizer, where=where, thought_tokens=tokens) if given or tokens else None


def _thinking(chat: Chat, tokenizer: PreTrainedTokenizerBase, tokens: int, where: str) -> Chat:
    """The chat with how the template asks a model that thinks. Raises `ModelError` where it knows no thoughts."""
    before, after = asked_texts(tokenizer, where=where, thinks=True)
    # Harmony's template puts the mark together, so that it is seen only before an answer.
    if left_open(after) is None and closed_by(f"{tokenizer.chat_template}{chat.after}") is None:
        raise ModelError(
            "The chat template knows no thoughts.",
            expected="a template with a thought's marks, such as <think> and </think> or harmony's channels",
            found="none of them",
            where=where,
            remedy="leave --thinking out (thinking=..., in Python), or take a model that thinks",
        )
    return replace(chat, thinking_before=before, thinking_after=after, thought_tokens=tokens)


def asked_texts(tokenizer: PreTrainedTokenizerBase, *, where: str, thinks: bool) -> tuple[str, str]:
    """The texts that a template puts around a question. Raises `ModelError` where it changes the question."""
    text = _apply(tokenizer, QUESTION, where=where, thinks=thinks)
    before, _, after = text.partition(QUESTION)
    sample = "The capital of France is"
    said = _apply(tokenizer, sample, where=where, thinks=thinks)
    if text.count(QUESTION) != 1 or said != f"{before}{sample}{after}":
        raise changes_what_is_said(text, where)
    return before, after


def changes_what_is_said(text: str, where: str) -> ModelError:
    """The error for a template that does not leave the user's words as they are; `text` is what it made."""
    return ModelError(
        "The chat template changes the text that it is given.",
        expected="a template that puts its own text around the user's words, as they are, once",
        found=repr(text[-200:]),
        where=where,
        remedy="leave chat out, or give the model's tokenizer another chat_template",
    )


def rendered(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Mapping[str, str]], *, thinks: bool, goes_on: bool = True
) -> str:
    """Turns in the template, with the beginning of the assistant's next one where it goes on.

    Raises whatever the template raises.
    """
    # Templates name the switch differently.
    switches = {"enable_thinking": thinks, "thinking": thinks}
    return render_chat(tokenizer, turns, add_generation_prompt=goes_on, **switches)


def _apply(
    tokenizer: PreTrainedTokenizerBase, question: str, answer: str | None = None, *, where: str, thinks: bool = False
) -> str:
    turns = [{"role": "user", "content": question}]
    if answer is not None:
        turns.append({"role": "assistant", "content": answer})
    try:
        return rendered(tokenizer, turns, thinks=thinks, goes_on=answer is None)
    except Exception as error:  # a template is a program, and its errors are of any kind
        raise ModelError(
            "The chat template cannot be used.",
            expected="a template for one user's turn and one assistant's turn",
            found=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            where=where,
            remedy="leave chat out, or give the model's tokenizer another chat_template",
        ) from error
