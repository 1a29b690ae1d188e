"""A model that can be asked, looked into and patched: the one forward path that everything else uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, overload

import torch
from torch import Tensor

from palimpsest.errors import DataError
from palimpsest.models import routing, tokens
from palimpsest.models.generation import DEFAULT_ROWS, Until, continuations
from palimpsest.models.hooks import Intervention, Point, captured, intervened
from palimpsest.models.reader import Reader
from palimpsest.models.scores import TargetScore, target_scores
from palimpsest.models.tokens import Encoded, PaddedBatch, PaddingSide


class Handle(Protocol):
    """A change on a model that can be removed."""

    def remove(self) -> None:
        """Takes it off; the model is what it would be without it, bit for bit."""


class Appliable(Protocol):
    """A change that can be applied to a model: a patch."""

    def apply(self, model: EditableModel) -> Handle:
        """Puts it on, whole or not at all."""


class EditableModel(Reader):
    """A transformers model and its tokenizer, with verified sites.

    Arguments:
        model: a decoder, or an encoder-decoder, with a language-model head.
        tokenizer: its tokenizer; neither it nor the model's config is ever changed.
        name: what to call it in records.
        architecture: a row for a family outside the site table.
        chat: whether prompts are a user's turns in the tokenizer's chat template; or the texts of one, as a patch
            keeps them.
        thinking: whether the model thinks before it answers, in a chat, or in how many tokens at most; see
            `models.chat.chosen_chat`.

    Raises `ModelError` when the layout is unknown or not what the table says, or there is no chat template.
    """

    def score(
        self,
        prompts: Sequence[str],
        targets: Sequence[str],
        *,
        forward_batch_size: int = DEFAULT_ROWS,
        side: PaddingSide = "right",
    ) -> list[TargetScore]:
        """Teacher-forced scores of each target after its prompt, batched by length, without gradients."""
        if self.weights.routers:
            return routing.score(self, prompts, targets, forward_batch_size=forward_batch_size, side=side)
        encoded = [self.encode(prompt, target) for prompt, target in zip(prompts, targets, strict=True)]
        scores: list[TargetScore | None] = [None] * len(encoded)
        for chunk in tokens.by_length([len(row) for row in encoded], forward_batch_size):
            for index, score in zip(chunk, self._score_chunk([encoded[i] for i in chunk], side), strict=True):
                scores[index] = score
        return [score for score in scores if score is not None]

    @overload
    def generate(  # type: ignore[overload-overlap]  # a str is a Sequence[str] to the type checker
        self,
        prompts: str,
        *,
        max_new_tokens: int = ...,
        until: Until = ...,
        forward_batch_size: int = ...,
    ) -> str: ...
    @overload
    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = ...,
        until: Until = ...,
        forward_batch_size: int = ...,
    ) -> list[str]: ...
    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        max_new_tokens: int = 24,
        until: Until = None,
        forward_batch_size: int = DEFAULT_ROWS,
    ) -> str | list[str]:
        """Greedy continuations, up to the first sentence end, newline or end-of-sequence.

        Arguments:
            until: texts that end an answer instead of a sentence's end, none at all for as many tokens as may be; or a
                rule, see `models.generation.Until`.

        Returns the continuation with the sentence end if there was one, without surrounding spaces, or as it was
        written before the first of `until`: one string for one prompt, else a list in the order of the prompts. In a
        chat that thinks it is the answer, a `wording.Reply` with the thought before it.
        """
        single = isinstance(prompts, str)
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if self.weights.routers:
            routed = routing.generate(self, texts, max_new_tokens, until, forward_batch_size=forward_batch_size)
            return routed[0] if single else routed
        encoded = [self.asked(text) for text in texts]
        found = [""] * len(texts)
        with torch.no_grad():
            for chunk in tokens.by_length([len(row) for row in encoded], forward_batch_size):
                batch = self.batch([encoded[i] for i in chunk], side="left")
                room = self._room_for_answers(batch.input_ids.shape[1], texts[chunk[0]])
                with self.reads(batch):
                    produced = continuations(self, batch, max_new_tokens=max_new_tokens, room=room, until=until)
                for index, text in zip(chunk, produced, strict=True):
                    found[index] = text
        return found[0] if single else found

    # Looking inside

    def capture(
        self, prompts: Sequence[str], points: list[Point], *, side: PaddingSide = "right"
    ) -> tuple[PaddedBatch, dict[Point, Tensor]]:
        """The tensors, (rows, tokens, width), that flow through the points for a batch of prompts.

        An encoder-decoder's decoder has read only its start token.
        """
        batch = self.batch([self.encode(prompt) for prompt in prompts], side=side)
        with torch.no_grad(), captured(self.sites, points) as found:
            self.forward(batch)
        return batch, found

    @contextmanager
    def intervene(self, changes: Mapping[Point, Intervention]) -> Iterator[None]:
        """Inside the block, what flows through the points is what the functions return."""
        with intervened(self.sites, changes):
            yield

    # Patches

    @contextmanager
    def patched(self, *patches: Appliable) -> Iterator[EditableModel]:
        """Inside the block the model is the patched one; afterwards it is the former one, bit for bit.

        Arguments:
            patches: the first one lowest.
        """
        with ExitStack() as stack:
            for patch in patches:
                stack.enter_context(self._with(patch))
            yield self

    @contextmanager
    def _with(self, patch: Appliable) -> Iterator[None]:
        depth, applied = self.weights.depth, None
        try:
            applied = patch.apply(self)
            yield
        finally:
            # An interrupt may fall between the patch being on and its handle being here.
            if applied is not None:
                applied.remove()
            else:
                self.weights.unwind(depth)

    def fingerprint(self, touched: Sequence[str] = ()) -> dict[str, Any]:
        """Returns the identity of the base model, independent of the patches on it. See `models.fingerprint`."""
        found = self.weights.fingerprint(self.module.config, touched)
        return found if self.file_digest is None else {**found, "file": self.file_digest}

    def _room_for_answers(self, width: int, longest: str) -> int:
        """Tokens that fit behind the longest prompt of a batch. Raises `DataError` when none does."""
        room = self.room_after(width)
        if room < 1:
            raise DataError(
                "A prompt leaves no room for an answer.",
                expected=f"fewer than {self.context_length} tokens, the model's context",
                found=f"{width} tokens",
                where=f"prompt {longest[:60]!r}",
            )
        return room

    @torch.no_grad()
    def _score_chunk(self, encoded: Sequence[Encoded], side: PaddingSide) -> list[TargetScore]:
        batch = self.batch(encoded, side=side)
        rows, columns, labels = self.answer_places(encoded, batch)
        return target_scores(encoded, labels, self.logits_at(batch, rows, columns).float())
