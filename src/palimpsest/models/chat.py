"""Chat templates: what a tokenizer writes around a user's words, and how the assistant's answer follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from palimpsest.errors import ModelError
from palimpsest.models.templates import render_chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Stand for a message while the template is read; no template treats them in a way of its own.
_QUESTION, _ANSWER = "Xq7question", "Xq7answer"


@dataclass(frozen=True)
class Chat:
    """A chat of one turn, as text: `before`, the prompt, `after`, `separator`, the answer, `end`.

    Arguments:
        before: everything up to the user's words, beginning-of-sequence and system prompt included.
        after: from there to where the assistant begins to speak: the generation prompt.
        separator: white space that the template puts between that and the answer; mostly none.
        end: what follows the answer.
    """

    before: str
    after: str
    separator: str = ""
    end: str = ""

    def render(self, prompt: str) -> str:
        """The prompt as the user's turn, followed by the generation prompt."""
        return f"{self.before}{prompt}{self.after}"

    def end_id(self, tokenizer: PreTrainedTokenizerBase) -> int | None:
        """The token that ends the assistant's turn, if it is one of the tokenizer's special or added ones."""
        ids = tokenizer(self.end.strip(), add_special_tokens=False)["input_ids"]
        added = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
        return int(ids[0]) if ids and ids[0] in added else None

    def to_dict(self) -> dict[str, str]:
        """Its texts, JSON-ready; `Chat(**found)` reads them back."""
        return asdict(self)


def chat_of(tokenizer: PreTrainedTokenizerBase, *, where: str) -> Chat:
    """Reads how a tokenizer's chat template writes one question and its answer.

    Where a template can leave out a model's thinking (`enable_thinking`), it is left out: an edit is about the answer.

    Raises `ModelError` for a tokenizer without a template, and for a template that does not simply put its texts
    around what was said.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            "The tokenizer has no chat template.",
            expected="a model made for conversations, whose tokenizer has a chat_template",
            found=f"a {type(tokenizer).__name__} without one",
            where=where,
            remedy="leave chat out, or take the model's instruction-tuned version",
        )
    asked = _apply(tokenizer, _QUESTION, where=where)
    answered = _apply(tokenizer, _QUESTION, _ANSWER, where=where)
    before, _, after = asked.partition(_QUESTION)
    rest = answered.removeprefix(asked) if answered.startswith(asked) else answered.partition(_QUESTION)[2]
    between, _, end = rest.partition(_ANSWER)
    chat = Chat(before, after, "" if between.strip() else between, end)
    sample = "The capital of France is"
    if (asked.count(_QUESTION), answered.count(_ANSWER)) != (1, 1) or _apply(
        tokenizer, sample, where=where
    ) != chat.render(sample):
        raise ModelError(
            "The chat template changes the text that it is given.",
            expected="a template that puts its own text around the user's words, as they are, once",
            found=repr(asked[-200:]),
            where=where,
            remedy="leave chat out, or give the model's tokenizer another chat_template",
        )
    return chat


def chosen_chat(
    chat: bool | Chat | Mapping[str, str], tokenizer: PreTrainedTokenizerBase, *, where: str
) -> Chat | None:
    """The chat to use: the template's for `True`, none for `False`, else the one that is given, as a patch keeps it."""
    if isinstance(chat, Chat):
        return chat
    if isinstance(chat, Mapping):
        return Chat(**chat)
    return chat_of(tokenizer, where=where) if chat else None


def _apply(tokenizer: Any, question: str, answer: str | None = None, *, where: str) -> str:
    turns = [{"role": "user", "content": question}]
    if answer is not None:
        turns.append({"role": "assistant", "content": answer})
    try:
        return render_chat(tokenizer, turns, add_generation_prompt=answer is None, enable_thinking=False)
    except Exception as error:  # a template is a program, and its errors are of any kind
        raise ModelError(
            "The chat template cannot be used.",
            expected="a template for one user's turn and one assistant's turn",
            found=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            where=where,
            remedy="leave chat out, or give the model's tokenizer another chat_template",
        ) from error
