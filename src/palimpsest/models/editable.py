"""A model that can be asked, looked into and patched: the one forward path that everything else uses."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol, overload

import torch
from torch import Tensor, nn

from palimpsest.checkpoints.pretrained import refuse_nan
from palimpsest.errors import DataError, ModelError
from palimpsest.models import routing, tokens
from palimpsest.models.chat import Chat, chosen_chat
from palimpsest.models.fingerprint import tokenizer_digest
from palimpsest.models.generation import DEFAULT_ROWS, Until, continuations, start_id
from palimpsest.models.hooks import Intervention, Point, captured, intervened
from palimpsest.models.patch_stack import PatchStack
from palimpsest.models.placement import device_of
from palimpsest.models.scores import TargetScore, target_scores
from palimpsest.models.sites.architecture import Sites, resolve
from palimpsest.models.sites.families import Architecture
from palimpsest.models.tokens import Encoded, PaddedBatch, PaddingSide


class Handle(Protocol):
    """What lies on a model and can be taken off."""

    def remove(self) -> None:
        """Takes it off; the model is what it would be without it, bit for bit."""


class Appliable(Protocol):
    """What can be put on a model: a patch."""

    def apply(self, model: EditableModel) -> Handle:
        """Puts it on, whole or not at all."""


class EditableModel:
    """A transformers model and its tokenizer, with verified sites.

    Arguments:
        model: a decoder, or an encoder-decoder, with a language-model head.
        tokenizer: its tokenizer; neither it nor the model's config is ever changed.
        name: what to call it in records.
        architecture: a row for a family outside the site table.
        chat: whether prompts are a user's turns in the tokenizer's chat template; or the texts of one, as a patch
            keeps them.

    Raises `ModelError` when the layout is unknown or not what the table says, or there is no chat template.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        name: str,
        architecture: Architecture | None = None,
        chat: bool | Chat | Mapping[str, str] = False,
    ) -> None:
        self.module: Any = model.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.file_digest: str | None = None
        """SHA-256 of the GGUF file that the model was read from; `None` for any other."""
        self.reading: PaddedBatch | None = None
        # What has been found out about the model's code, and so holds whatever its weights become.
        self.findings: dict[object, Any] = {}
        self.chat = chosen_chat(chat, tokenizer, where=f"model {name!r}")
        self._check_vocabulary()
        # Before the first forward pass, which may turn quantised weights into another form.
        self.weights = PatchStack(self.module)
        self.sites: Sites = resolve(self.module, architecture)
        self.is_encoder_decoder: bool = self.sites.architecture.encoder is not None
        self._decoder_start = start_id(self.module) if self.is_encoder_decoder else None
        if self.chat is not None and self.is_encoder_decoder:
            raise ModelError(
                "An encoder-decoder takes no part in a chat.",
                expected="a decoder, which reads the user's turn and goes on with its own",
                found=f"family {self.sites.architecture.name!r}",
                where=f"model {name!r}",
                remedy="leave chat out",
            )
        accepted = inspect.signature(self.module.forward).parameters
        self.takes_positions = "position_ids" in accepted
        self.last_logits_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self.has_separable_head = self._verify_head()

    @cached_property
    def tokenizer_digest(self) -> str:
        """What identifies the tokenizer; see `models.fingerprint.tokenizer_digest`."""
        return tokenizer_digest(self.tokenizer)

    @property
    def num_layers(self) -> int:
        """Number of blocks; the decoder's where there is an encoder too."""
        return self.sites.num_layers

    @property
    def device(self) -> torch.device:
        """Where inputs go and results come back: the device on which the token embedding computes."""
        return device_of(self.sites.module("embed"))

    # Text to ids

    def encode(self, prompt: str, target: str | None = None) -> Encoded:
        """Ids of a prompt, and of a target after it. Raises `DataError` when they do not fit the context."""
        if self.is_encoder_decoder:
            encoded = tokens.encode_apart(self.tokenizer, prompt, target)
            length, counted = max(len(encoded.prompt_ids), len(encoded.target_ids)), " each for prompt and target"
        else:
            encoded = tokens.encode(self.tokenizer, prompt, target, chat=self.chat)
            length, counted = len(encoded), ", the target included"
        limit = self.context_length
        if limit is not None and length > limit:
            too_long = "A prompt" if len(encoded.prompt_ids) > limit else "A prompt with its answer"
            raise DataError(
                f"{too_long} is longer than the model's context.",
                expected=f"at most {limit} tokens{counted}",
                found=f"{len(encoded.prompt_ids)} tokens of the prompt, {len(encoded.target_ids)} of the answer",
                where=f"prompt {prompt[:60]!r}",
                remedy="shorten it, or leave the record out",
            )
        return encoded

    @property
    def end_id(self) -> int | None:
        """The token that ends an answer: of the assistant's turn in a chat, else of the sequence."""
        own = self.chat.end_id(self.tokenizer) if self.chat is not None else None
        end: int | None = self.tokenizer.eos_token_id if own is None else own
        return end

    def batch(self, rows: Sequence[Encoded | Sequence[int]], *, side: PaddingSide = "right") -> PaddedBatch:
        """Encoded rows, or plain ids of prompts, padded, on the model's device.

        An encoder-decoder's decoder reads its start token and then the target, shifted right: in each place the
        tokens before it, never the one that is to be predicted. Both its halves are padded on the right whatever the
        side: some families count positions from the first column and take no others.
        """
        encoded = [row if isinstance(row, Encoded) else Encoded(tuple(row)) for row in rows]
        lengths = torch.tensor([len(row.prompt_ids) for row in encoded], device=self.device)
        if self._decoder_start is None:
            batch = self._pad([row.ids for row in encoded], side)
            return replace(batch, prompt_ends=batch.starts + lengths - 1)
        decoder = self._pad([(self._decoder_start, *row.target_ids[:-1]) for row in encoded], "right")
        return replace(
            self._pad([row.prompt_ids for row in encoded], "right"), decoder=decoder, prompt_ends=lengths - 1
        )

    @property
    def context_length(self) -> int | None:
        config = self.module.config
        limit = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
        return None if limit is None else int(limit)

    def room_after(self, length: int) -> int:
        """How many tokens of an answer fit after a prompt of that many; an encoder's prompt takes none of the room."""
        limit = self.context_length
        if limit is None:
            return sys.maxsize
        return limit if self.is_encoder_decoder else limit - length

    # The forward path

    def inputs(self, batch: PaddedBatch) -> dict[str, Tensor]:
        """What the module is given for a padded batch."""
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if self.takes_positions:
            inputs["position_ids"] = batch.position_ids
        if batch.decoder is not None:
            inputs["decoder_input_ids"] = batch.decoder.input_ids
            inputs["decoder_attention_mask"] = batch.decoder.attention_mask
        return inputs

    def forward(self, batch: PaddedBatch, **kwargs: Any) -> Any:
        """The model's own output for a padded batch: mask in, positions counted from each row's first real token."""
        with self.reads(batch):
            return self.module(**self.inputs(batch), **kwargs)

    @contextmanager
    def reads(self, batch: PaddedBatch) -> Iterator[None]:
        """Inside the block `reading` is this batch, for hooks that have to know where its prompts end."""
        former, self.reading = self.reading, batch
        try:
            yield
        finally:
            self.reading = former

    def logits_at(self, batch: PaddedBatch, rows: Tensor, columns: Tensor) -> Tensor:
        """Logits at chosen places only, (places, vocabulary); the head is not computed anywhere else.

        Arguments:
            batch: the padded rows.
            rows: (places,), row of each place.
            columns: (places,), its column; the decoder's where there is an encoder too.
        """
        if self.has_separable_head:
            with self.reads(batch):
                hidden = self.module.base_model(**self.inputs(batch)).last_hidden_state
            logits: Tensor = self.module.get_output_embeddings()(_at(hidden, rows, columns))
        else:
            logits = _at(self.forward(batch).logits, rows, columns)
        return logits.to(rows.device)

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

    def answer_places(self, encoded: Sequence[Encoded], batch: PaddedBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Where the target tokens of each row are predicted: (rows, columns, target ids), each (places,).

        Columns are those of what the decoder reads: prompt and target, or, behind an encoder, the target alone.
        """
        rows, columns, labels = [], [], []
        for index, row in enumerate(encoded):
            before = len(row.prompt_ids) - 1 if batch.decoder is None else 0
            first = int((batch.decoder or batch).starts[index]) + before
            for offset, label in enumerate(row.target_ids):
                rows.append(index)
                columns.append(first + offset)
                labels.append(label)
        device = self.device
        return (
            torch.tensor(rows, device=device),
            torch.tensor(columns, device=device),
            torch.tensor(labels, device=device),
        )

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
            until: texts that end an answer in place of a sentence's end, none at all for as many tokens as may be; or a
                rule, see `models.generation.Until`.

        Returns the continuation with the sentence end if there was one, without surrounding spaces, or as it was
        written before the first of `until`: one string for one prompt, else a list in the order of the prompts.
        """
        single = isinstance(prompts, str)
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if self.weights.routers:
            routed = routing.generate(self, texts, max_new_tokens, until, forward_batch_size=forward_batch_size)
            return routed[0] if single else routed
        encoded = [self.encode(text) for text in texts]
        found = [""] * len(texts)
        with torch.no_grad():
            for chunk in tokens.by_length([len(row) for row in encoded], forward_batch_size):
                batch = self.batch([encoded[i] for i in chunk], side="left")
                room = self._room_for_answers(batch.input_ids.shape[1], texts[chunk[0]])
                with self.reads(batch):
                    produced = continuations(self, batch, max_new_tokens=min(max_new_tokens, room), until=until)
                for index, text in zip(chunk, produced, strict=True):
                    found[index] = text
        return found[0] if single else found

    # Looking inside

    def capture(
        self, prompts: Sequence[str], points: list[Point], *, side: PaddingSide = "right"
    ) -> tuple[PaddedBatch, dict[Point, Tensor]]:
        """The tensors, (rows, tokens, width), that flow through the points for a batch of prompts.

        An encoder-decoder's decoder has read its start token alone.
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
    def patched(self, patch: Appliable) -> Iterator[EditableModel]:
        """Inside the block the model is the patched one; afterwards it is the former one, bit for bit."""
        depth, applied = self.weights.depth, None
        try:
            applied = patch.apply(self)
            yield self
        finally:
            # An interrupt may fall between the patch being on and its handle being here.
            if applied is not None:
                applied.remove()
            else:
                self.weights.unwind(depth)

    def fingerprint(self, touched: Sequence[str] = ()) -> dict[str, Any]:
        """What identifies the base model, whatever patches are on it. See `models.fingerprint`."""
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

    def _pad(self, rows: Sequence[Sequence[int]], side: PaddingSide) -> PaddedBatch:
        return tokens.pad(rows, pad_id=tokens.pad_id(self.tokenizer), side=side, device=self.device)

    @torch.no_grad()
    def _score_chunk(self, encoded: Sequence[Encoded], side: PaddingSide) -> list[TargetScore]:
        batch = self.batch(encoded, side=side)
        rows, columns, labels = self.answer_places(encoded, batch)
        return target_scores(encoded, labels, self.logits_at(batch, rows, columns).float())

    @torch.no_grad()
    def _verify_head(self) -> bool:
        """Whether head(base model) gives the model's logits; some families scale or cap them in between."""
        batch = self.batch([list(range(3))])
        logits = self.forward(batch).logits
        refuse_nan(self.module, logits, self.name)
        try:
            hidden = self.module.base_model(**self.inputs(batch)).last_hidden_state
            separate = self.module.get_output_embeddings()(hidden)
        except (AttributeError, TypeError):
            return False
        return torch.equal(separate, logits)

    def _check_vocabulary(self) -> None:
        rows = int(self.module.get_input_embeddings().weight.shape[0])
        # Ids may have gaps, so that the largest says more than how many there are.
        size = max(len(self.tokenizer), 1 + max(self.tokenizer.get_vocab().values(), default=0))
        if size > rows:
            raise ModelError(
                "The tokenizer does not belong to the model.",
                expected=f"at most {rows} tokens, one embedding row each",
                found=f"a tokenizer with ids up to {size - 1}",
                where=f"model {self.name!r}",
                remedy="load the tokenizer from the model's own folder",
            )


def _at(tensor: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Chosen places of a tensor that may be on another device than the inputs: the last layers' own."""
    return tensor[rows.to(tensor.device), columns.to(tensor.device)]
