"""Factors of ordinary text, counted before the first edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from palimpsest.methods.memory import MemoryConfig
from palimpsest.methods.ordinary import OrdinaryText
from palimpsest.methods.ultraedit.running_factors import RunningFactors, factor_rows, met
from palimpsest.models import EditableModel, Encoded
from palimpsest.provenance import digest
from palimpsest.stopwatch import Progress, silent
from palimpsest.training import WeightPlace


class WarmUp:
    """Statistics of a base model on ordinary text, kept for the next edit of the same model."""

    def __init__(self) -> None:
        self._text = OrdinaryText()
        self._kept: tuple[str, RunningFactors] | None = None

    def of(
        self,
        model: EditableModel,
        where: Sequence[WeightPlace],
        groups: Mapping[str, str],
        fresh: RunningFactors,
        *,
        text: str,
        max_tokens: int,
        forward_batch_size: int,
        progress: Progress = silent,
    ) -> RunningFactors:
        """The state after the text.

        Arguments:
            where: the weights that are changed.
            groups: weight to the name of its group.
            fresh: the state before anything was seen.
            text: its name; see the option `text`.
            max_tokens: tokens of it; 0 for none.
            forward_batch_size: rows in one pass.
        """
        if not max_tokens:
            return fresh
        has_products = [group.gradients.products is not None for group in fresh.groups.values()]
        key = digest([model.fingerprint(), model.tokenizer_digest, text, max_tokens, dict(groups), has_products])
        if self._kept is None or self._kept[0] != key:
            with model.weights.without_changes():
                rows = self._text.of(model, text, MemoryConfig(max_tokens=max_tokens), progress)
                read = [one for one in (_all_predicted(row.encoded) for row in rows) if one.target_ids]
                found = factor_rows(model, read, where, forward_batch_size=forward_batch_size)
                self._kept = (key, met(model, where, groups, fresh, found))
        return self._kept[1]


def _all_predicted(row: Encoded) -> Encoded:
    """A text of which every token but the first is to be predicted; one with an answer as it is."""
    return row if row.target_ids else Encoded(row.prompt_ids[:1], row.prompt_ids[1:])
