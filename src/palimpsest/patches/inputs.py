"""Patches that keep the weights and put a text before the prompt: the edit, and examples of edits."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from palimpsest.models import TextEncoder, inner_products, most_similar, text_encoder, tokens
from palimpsest.models.routing import Route
from palimpsest.patches.base import Manifest, Patch
from palimpsest.patches.memory import MemoryEntry, MemoryPatch, read_entries

if TYPE_CHECKING:
    from palimpsest.models import EditableModel, StackedChange


_PLACE = re.compile(r"\{(prompt|answer|query)\}")


class InputPatch(MemoryPatch):
    """Every prompt is read behind the edit that is most similar to it.

    Arguments:
        entries: the edits.
        index: (entries, width), vectors of the edits' prompts, of length one.
        manifest: where they came from.
        encoder: what turns prompts into such vectors.
        template: what stands in the prompt's place, with `{prompt}` and `{answer}` of the edit and `{query}`, the
            prompt. The demonstrations come before it.
        reserve: tokens of the model's context that are left free for an answer.
    """

    kind = "inputs"

    def __init__(
        self,
        entries: Sequence[MemoryEntry],
        index: Tensor,
        manifest: Manifest | None = None,
        *,
        encoder: TextEncoder,
        template: str,
        reserve: int,
    ) -> None:
        super().__init__(entries, index, manifest)
        self.encoder, self.template, self.reserve = encoder, template, reserve

    def holding(self, entries: Sequence[MemoryEntry], index: Tensor, manifest: Manifest) -> InputPatch:
        """See `MemoryPatch.holding`."""
        return InputPatch(entries, index, manifest, encoder=self.encoder, template=self.template, reserve=self.reserve)

    def shared(self) -> dict[str, Any]:
        """See `MemoryPatch.shared`."""
        return {"encoder": self.encoder.name, "template": self.template, "reserve": self.reserve}

    @classmethod
    def from_saved(cls, tensors: Mapping[str, Tensor], manifest: Manifest, parts: Mapping[str, Patch]) -> InputPatch:
        """See `Patch.from_saved`."""
        payload = manifest.payload
        entries, index = read_entries(tensors, payload)
        encoder = text_encoder(str(payload["encoder"]))
        template, reserve = str(payload["template"]), int(payload["reserve"])
        return cls(entries, index, manifest, encoder=encoder, template=template, reserve=reserve)

    def put_on(self, model: EditableModel) -> StackedChange:
        """See `Patch.put_on`."""

        def router(prompts: Sequence[str]) -> list[Route | None]:
            entries = self.nearest(prompts)
            return [self.route(model, entry, prompt) for entry, prompt in zip(entries, prompts, strict=True)]

        return model.weights.push(self.manifest.label, {}, origin=self, router=router if self.entries else None)

    def nearest(self, prompts: Sequence[str]) -> list[MemoryEntry]:
        """The entry that is most similar to each prompt; of equals the one whose prompt is first in the alphabet."""
        if len(self.entries) == 1:
            return [self.entries[0]] * len(prompts)
        texts = [entry.prompt for entry in self.entries]
        similarities = inner_products(self.encoder.encode(prompts), self.index)
        return [self.entries[most_similar(row, texts, 1)[0]] for row in similarities]

    def route(self, model: EditableModel, entry: MemoryEntry, prompt: str) -> Route | None:
        """The prompt behind the edit and as many demonstrations as fit; `None` when not even the edit fits."""
        kept = self.num_fitting(model, entry, prompt)
        return None if kept is None else Route(self.text(entry, prompt, kept))

    def text(self, entry: MemoryEntry, prompt: str, kept: int) -> str:
        """Returns the text that replaces the prompt, with the `kept` most similar demonstrations."""
        shown = entry.demonstrations[len(entry.demonstrations) - kept :]
        return "".join((*shown, filled_template(self.template, prompt=entry.prompt, answer=entry.answer, query=prompt)))

    def num_fitting(self, model: EditableModel, entry: MemoryEntry, prompt: str) -> int | None:
        """How many demonstrations fit into the model's context before an edit and a prompt; the most similar ones."""
        limit = model.context_length
        if limit is None:
            return len(entry.demonstrations)
        room = limit if model.is_encoder_decoder else limit - self.reserve

        def length(kept: int) -> int:
            text = self.text(entry, prompt, kept)
            return len(tokens.encode(model.tokenizer, text, None, chat=model.chat).prompt_ids)

        # The first number that is too many; the length grows with the number.
        return (
            bisect_left(range(len(entry.demonstrations) + 1), room + 1, key=length) - 1 if length(0) <= room else None
        )


def filled_template(template: str, **parts: str) -> str:
    """A template with `prompt`, `answer` and `query` put in; other braces, of the template or the parts, stay."""
    return _PLACE.sub(lambda place: parts[place[1]], template)
