"""The forward path of a model: text to ids, ids to logits, with any patches on its weights."""

from __future__ import annotations

import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from palimpsest.checkpoints import refuse_nan
from palimpsest.errors import DataError, ModelError
from palimpsest.models import tokens
from palimpsest.models.chat import Chat, chosen_chat
from palimpsest.models.fingerprint import tokenizer_digest
from palimpsest.models.patch_stack import PatchStack
from palimpsest.models.placement import device_of
from palimpsest.models.scores import TargetScore
from palimpsest.models.sites.architecture import Sites
from palimpsest.models.sites.resolving import resolve
from palimpsest.models.sites.rows import Architecture
from palimpsest.models.tokens import Encoded, PaddedBatch, PaddingSide
from palimpsest.showing import html_table, named

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Reader(ABC):
    """A transformers model and its tokenizer, with verified sites; see `models.editable.EditableModel`."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        name: str,
        architecture: Architecture | None = None,
        chat: bool | Chat | Mapping[str, Any] = False,
        thinking: bool | int | None = None,
    ) -> None:
        self.module: Any = model.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.file_digest: str | None = None
        """SHA-256 of the GGUF file that the model was read from; `None` for any other."""
        self.reading: PaddedBatch | None = None
        # What has been found out about the model's code, and so holds whatever its weights become.
        self.findings: dict[object, Any] = {}
        self.chat = chosen_chat(chat, tokenizer, where=f"model {name!r}", thinking=thinking)
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

    def __repr__(self) -> str:
        facts = self._facts()
        patches = f"patches: {facts.pop('patches')}" if self.weights.labels else ""
        return named(self, repr(self.name), *(value for key, value in facts.items() if key != "name"), patches)

    def _repr_html_(self) -> str:
        return html_table(type(self).__name__, ("", ""), self._facts().items())

    def _facts(self) -> dict[str, str]:
        """Returns the main facts about the model, by name."""
        layers = f"{self.num_layers} layers" + (" per stack" if self.is_encoder_decoder else "")
        parameters = sum(one.numel() for one in self.module.parameters())
        return {
            "name": self.name,
            "family": self.sites.architecture.name,
            "layers": layers,
            "parameters": f"{parameters / 1e6:,.1f}M parameters",
            "computes": f"{str(self.module.dtype).removeprefix('torch.')} on {self.device}",
            "prompts": "" if self.chat is None else "chat, with thinking" if self.chat.thinking else "chat",
            "patches": ", ".join(self.weights.labels) or "none",
        }

    @cached_property
    def tokenizer_digest(self) -> str:
        """A digest of the tokenizer; see `models.fingerprint.tokenizer_digest`."""
        return tokenizer_digest(self.tokenizer)

    @property
    def num_layers(self) -> int:
        """Number of blocks; the decoder's if there is an encoder too."""
        return self.sites.num_layers

    @property
    def device(self) -> torch.device:
        """Where inputs go and results come back: the device on which the token embedding computes."""
        return device_of(self.sites.module("embed"))

    # Text to ids

    def fits(self, prompt: str, target: str | None = None) -> bool:
        """Whether a prompt, and a target after it, fit the model's context."""
        try:
            self.encode(prompt, target)
        except DataError:
            return False
        return True

    def encode(self, prompt: str, target: str | None = None, *, own: str | None = None) -> Encoded:
        """Ids of a prompt, and of a target after it.

        Arguments:
            own: where a method put a text before the prompt, the prompt as it was given: an error names that.

        Raises `DataError` when they do not fit the model's context.
        """
        if self.is_encoder_decoder:
            encoded = tokens.encode_apart(self.tokenizer, prompt, target)
            length, counted = max(len(encoded.prompt_ids), len(encoded.target_ids)), " each for prompt and target"
        else:
            encoded = tokens.encode(self.tokenizer, prompt, target, chat=self.chat)
            length, counted = len(encoded), ", the target included"
        limit = self.context_length
        if limit is None or length <= limit:
            return encoded
        what = "A prompt" if len(encoded.prompt_ids) > limit else "A prompt with its answer"
        expected = f"at most {limit} tokens{counted}"
        if own is None or own == prompt:
            raise DataError(
                f"{what} is longer than the model's context.",
                expected=expected,
                found=f"{len(encoded.prompt_ids)} tokens of the prompt, {len(encoded.target_ids)} of the answer",
                where=f"prompt {prompt[:60]!r}",
                remedy="shorten it, or leave the record out",
            )
        # Says so where the prompt by itself is too long already.
        alone = len(self.encode(own, target).prompt_ids)
        raise DataError(
            f"{what}, behind the text that the method put before it, is longer than the model's context.",
            expected=expected,
            found=f"{alone} tokens of the prompt, {len(encoded.prompt_ids) - alone} more with the text before it, "
            f"{len(encoded.target_ids)} of the answer",
            where=f"prompt {own[:60]!r}, behind {prompt.removesuffix(own)[:60]!r}",
            remedy="shorten the prompt, or leave the record out; or take a method that puts nothing before prompts, "
            "such as ft or lora, or -o contexts.given=[] with one that has this option",
        )

    def asked(self, prompt: str) -> Encoded:
        """Ids of a prompt behind which the model is to write: `encode`'s, but for a chat in which it thinks first.

        Raises `DataError` when they do not fit the context.
        """
        if self.chat is None or self.chat.thinking is None:
            return self.encode(prompt)
        with self.in_chat(self.chat.asked()):
            return self.encode(prompt)

    @contextmanager
    def in_chat(self, chat: Chat | None) -> Iterator[None]:
        """Inside the block prompts are put in that chat; `None` for plain prompts."""
        former, self.chat = self.chat, chat
        try:
            yield
        finally:
            self.chat = former

    @contextmanager
    def answering_at_once(self) -> Iterator[None]:
        """Inside the block the model does not think before it answers."""
        with self.in_chat(None if self.chat is None else self.chat.at_once()):
            yield

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
        """Returns the module's arguments for a padded batch."""
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
            columns: (places,), its column; the decoder's if there is an encoder too.
        """
        if self.has_separable_head:
            with self.reads(batch):
                hidden = self.module.base_model(**self.inputs(batch)).last_hidden_state
            logits: Tensor = self.module.get_output_embeddings()(_at(hidden, rows, columns))
        else:
            logits = _at(self.forward(batch).logits, rows, columns)
        return logits.to(rows.device)

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

    # What is asked of it, however it answers

    @abstractmethod
    def score(
        self, prompts: Sequence[str], targets: Sequence[str], *, forward_batch_size: int = ..., side: PaddingSide = ...
    ) -> list[TargetScore]:
        """See `EditableModel.score`."""

    @abstractmethod
    def generate(
        self, prompts: Any, *, max_new_tokens: int = ..., until: Any = ..., forward_batch_size: int = ...
    ) -> Any:
        """See `EditableModel.generate`."""

    def _pad(self, rows: Sequence[Sequence[int]], side: PaddingSide) -> PaddedBatch:
        return tokens.pad(rows, pad_id=tokens.pad_id(self.tokenizer), side=side, device=self.device)

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


def start_id(module: PreTrainedModel) -> int:
    """The id that an encoder-decoder's decoder starts from. Raises `ModelError` when the model does not say."""
    for config in (module.config, getattr(module, "generation_config", None)):
        declared = getattr(config, "decoder_start_token_id", None)
        if declared is not None:
            return int(declared)
    raise ModelError(
        "The model does not say what its decoder starts from.",
        expected="decoder_start_token_id in config.json or generation_config.json",
        found="none",
        where=f"a model of type {module.config.model_type!r}",
        remedy="add it; T5 starts from its padding token",
    )


def _at(tensor: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Chosen places of a tensor that may be on another device than the inputs: the last layers' own."""
    return tensor[rows.to(tensor.device), columns.to(tensor.device)]
