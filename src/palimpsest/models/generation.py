"""Greedy generation with cached keys and values, and how much is written where answers are looked for."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from palimpsest.answers import after_two_sentences, ended_sentence, new_names, old_names
from palimpsest.models.growing import GrowingText
from palimpsest.models.reader import Reader
from palimpsest.models.tokens import Encoded, PaddedBatch, by_length
from palimpsest.requests import EditRequest
from palimpsest.wording import before_repetition, is_degenerate, opened_by, parted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_ROWS = 64
MARGIN = 24
"""Tokens written behind the longest expected answer: how a text goes on shows whether the model babbles."""


class Writer(ABC):
    """A rule that ends a text, and also chooses its tokens; for one prompt at a time.

    Where the model thinks first, the number of new tokens is that of thought and answer together.
    """

    @abstractmethod
    def __call__(self, text: str) -> str | None:
        """The finished text, given the one so far, or `None` while there is more to come."""

    @abstractmethod
    def choose(self, logits: Tensor) -> Tensor:
        """(rows,), the ids that come next, from their logits, (rows, vocabulary)."""

    def think(self, thought: str | None) -> None:  # noqa: B027 - a rule need not look at thoughts
        """Is told what is certain of the thought after every token of it; see `models.growing.GrowingText`."""


Until = Sequence[str] | Callable[[str], str | None] | Writer | None
"""What ends a text: a sentence's end (`None`), one of some texts, or a rule, which is given the text so far and returns
the finished one, or `None` while there is more to come."""


@dataclass(frozen=True)
class AnswerRoom:
    """How much is written where answers are looked for.

    Arguments:
        tokens: at most so many.
        characters: the length that every text may reach.
    """

    tokens: int
    characters: int = 0

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, answers: Iterable[str], max_new_tokens: int | None = None
    ) -> AnswerRoom:
        """Room for the longest of some answers and `MARGIN` more tokens, or for a fixed number of tokens.

        With a fixed number a text goes on to its own end, so that with a large one the whole of it can be read.
        """
        if max_new_tokens is not None:
            return cls(max_new_tokens, sys.maxsize)
        texts = [f" {answer}" for answer in dict.fromkeys(answers)]
        longest = max(map(len, texts), default=0)
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        return cls(max(map(len, ids), default=0) + MARGIN, longest)

    @classmethod
    def for_edits(
        cls, tokenizer: PreTrainedTokenizerBase, requests: Sequence[EditRequest], max_new_tokens: int | None = None
    ) -> AnswerRoom:
        """Room for the answers of some edits, old and new; see `of`."""
        names = [name for request in requests for name in (*new_names(request), *old_names(request))]
        return cls.of(tokenizer, names, max_new_tokens)

    def to_dict(self) -> dict[str, int]:
        """Its numbers, JSON-ready."""
        return {"tokens": self.tokens, "characters": self.characters}


def written_answers(
    model: Reader, prompts: Sequence[str], room: AnswerRoom, *, forward_batch_size: int = DEFAULT_ROWS
) -> list[str]:
    """Generates texts after prompts for judging: greedily, and past the end of the answer.

    A text ends after as many tokens as there is room for, with its sequence, or behind two different sentences. Where
    the model thinks first, the text is what it answers after that, a `wording.Reply`.
    """
    until = after_two_sentences(room.characters)
    texts: list[str] = model.generate(
        prompts, max_new_tokens=room.tokens, until=until, forward_batch_size=forward_batch_size
    )
    # A model may think without having been asked to.
    return [parted(text) if opened_by(text) else text for text in texts]


def replies_to(model: Reader, requests: Sequence[EditRequest], max_new_tokens: int | None = None) -> list[str]:
    """Generates texts after the edits' prompts for judging, with the patches that are on the model.

    Arguments:
        max_new_tokens: at most so many; left out, enough for the longest answer, old or new, and `MARGIN` more.
    """
    room = AnswerRoom.for_edits(model.tokenizer, requests, max_new_tokens)
    return written_answers(model, [request.prompt for request in requests], room)


def own_repetitions(model: Reader, replies: Mapping[str, str], room: AnswerRoom) -> set[str]:
    """Of the prompts whose replies repeat themselves, those where the repetition is the base model's own.

    There the model without any patch, given the prompt and what the reply says before it repeats itself, repeats itself
    too: a model may end no text that begins with an answer it has not given before. A reply that begins with what it
    repeats is never the base model's own.

    Arguments:
        replies: from prompts to replies, written by the model with whatever is on it now.
    """
    heads = {prompt: before_repetition(reply) for prompt, reply in replies.items() if is_degenerate(reply)}
    begun = [(prompt, head) for prompt, head in heads.items() if head]
    if not begun:
        return set()
    with model.weights.without_changes(), model.answering_at_once():
        texts = _continued(model, begun, room)
    return {prompt for (prompt, _), text in zip(begun, texts, strict=True) if is_degenerate(text)}


def _continued(model: Reader, begun: Sequence[tuple[str, str]], room: AnswerRoom) -> list[str]:
    """What a model goes on to write after prompts and how their answers begin; empty where there is no room for it."""
    encoded = [model.encode(prompt, head) for prompt, head in begun]
    found = [""] * len(begun)
    # A decoder that reads the answer's beginning and an encoder's prompt is padded on the right: one row at a time.
    size = 1 if model.is_encoder_decoder else DEFAULT_ROWS
    with torch.no_grad():
        for chunk in by_length([len(row) for row in encoded], size):
            rows = [_to_be_continued(encoded[i], is_apart=model.is_encoder_decoder) for i in chunk]
            left = min(room.tokens, model.room_after(len(encoded[chunk[0]])))
            batch = model.batch(rows, side="left")
            until = after_two_sentences(room.characters)
            texts = [""] * len(chunk)
            if left > 0:
                with model.reads(batch):
                    texts = continuations(model, batch, max_new_tokens=left, room=left, until=until)
            for index, text in zip(chunk, texts, strict=True):
                found[index] = text
    return found


def _to_be_continued(encoded: Encoded, *, is_apart: bool) -> Encoded:
    """The row after which the target is continued; an encoder-decoder's decoder reads all but its last token."""
    if is_apart:
        return replace(encoded, target_ids=(*encoded.target_ids, encoded.target_ids[-1]))
    return Encoded(encoded.ids)


def continuations(
    model: Reader,
    batch: PaddedBatch,
    *,
    max_new_tokens: int,
    room: int,
    until: Until = None,
    steps: Steps | None = None,
) -> list[str]:
    """Greedy continuations of a batch, stopped at the end of the answer; a decoder's prompts are padded on the left.

    Arguments:
        max_new_tokens: of the answer; a thought before it has the chat's own number.
        room: tokens that fit behind the longest prompt, for thought and answer.
        until: texts that end an answer and do not belong to it, or a rule; left out, a sentence's end, which does.
        steps: where the logits come from; left out, from the model itself.

    Returns one string a row: as it was written where `until` is given, else without surrounding spaces; a
    `wording.Reply` where the model thought first.
    """
    ended = ended_sentence if until is None else until if callable(until) else partial(_before, until)
    answer_tokens = min(max_new_tokens, room)
    thinking = model.chat.thinking if model.chat is not None else None
    writer = until if isinstance(until, Writer) else None
    thought_room = answer_tokens if writer is not None else room - answer_tokens
    thought_tokens = min(thinking.tokens, thought_room) if thinking is not None else 0
    rows = [
        GrowingText(
            model.tokenizer,
            ended,
            answer_tokens=answer_tokens,
            thought_tokens=thought_tokens,
            opened=thinking.opened if thinking is not None else None,
            ends=_end_ids(model),
            turn_end=model.end_id,
            thinks=None if writer is None else writer.think,
        )
        for _ in range(len(batch.input_ids))
    ]
    choose = _likeliest if writer is None else writer.choose
    alive = list(range(len(rows))) if answer_tokens > 0 else []
    steps = logits_by_step(model, batch) if steps is None else steps
    logits = next(steps)
    while alive:
        chosen = choose(logits)
        ids = chosen.tolist()
        alive = [row for row in alive if rows[row].add(ids[row])]
        if alive:
            logits = steps.send(chosen)
    texts = [row.text for row in rows]
    return texts if until is not None else [text.strip() for text in texts]


def _likeliest(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


Steps = Generator[Tensor, Tensor, None]
"""Logits after the last token of each row, (rows, vocabulary); takes the ids that were chosen from them, (rows,)."""


def logits_by_step(model: Reader, batch: PaddedBatch) -> Steps:
    """A model's logits for what follows a batch of prompts, token by token."""
    return (
        _encoder_decoder_steps(model, batch) if batch.decoder is not None else decoder_steps(model, model.inputs(batch))
    )


def decoder_steps(model: Reader, inputs: dict[str, Any]) -> Steps:
    """A decoder's logits token by token, from what its module is given first."""
    while True:
        output = model.module(**inputs, use_cache=True, **model.last_logits_only)
        chosen = yield output.logits[:, -1]
        mask = inputs["attention_mask"]
        positions = {"position_ids": inputs["position_ids"][:, -1:] + 1} if model.takes_positions else {}
        inputs = {
            "input_ids": chosen[:, None],
            "attention_mask": torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1),
            "past_key_values": output.past_key_values,
            **positions,
        }


def _encoder_decoder_steps(model: Reader, batch: PaddedBatch) -> Steps:
    """Every row of the decoder grows by one at each step, so that it is never padded."""
    output = model.forward(batch, use_cache=True)
    encoded = (output.encoder_last_hidden_state,)
    while True:
        chosen = yield output.logits[:, -1]
        output = model.module(
            encoder_outputs=encoded,
            attention_mask=batch.attention_mask,
            decoder_input_ids=chosen[:, None],
            past_key_values=output.past_key_values,
            use_cache=True,
        )


def _before(stops: Sequence[str], text: str) -> str | None:
    """The text before the first of the stops, if there is one."""
    places = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else None


def _end_ids(model: Reader) -> set[int]:
    """Ids that end a sequence, by the model's generation config and its tokenizer."""
    declared = getattr(getattr(model.module, "generation_config", None), "eos_token_id", None)
    ids = set(declared if isinstance(declared, (list, tuple)) else [declared])
    ids.add(model.tokenizer.eos_token_id)
    return {int(one) for one in ids if one is not None}
