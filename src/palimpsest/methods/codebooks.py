"""Shared by GRACE and HoReN: the values of a call are searched together, as none sees another; then each is added."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, Literal, TypeVar, final

import torch
from torch import Tensor

from palimpsest.methods.base import Capabilities, EditRun, Method, MethodConfig, MethodState
from palimpsest.methods.states import BranchState
from palimpsest.models import EditableModel, frozen_parameters, layer_number
from palimpsest.patches import KeyedBranch, ModulePatch, Patch, Replacement
from palimpsest.requests import EditRequest
from palimpsest.training import ValueOptions, ValuePasses, find_values, value_passes


class CodebookConfig(ValueOptions, MethodConfig):
    """Options of methods that keep a codebook beside one layer."""

    site: str = "auto"
    """The linear site: `auto` is `mlp.down`, of the encoder if there is one."""
    layer: int | Literal["auto"] = "auto"
    """Its layer; negative numbers count from the last. `auto` is the one at 0.69 of the depth."""

    def place(self, model: EditableModel) -> tuple[str, int]:
        """The site and its layer. Raises `ConfigError` for an unknown site, `ModelError` for a layer out of range."""
        site = self.site
        if site == "auto":
            site = "encoder.mlp.down" if model.is_encoder_decoder else "mlp.down"
        return site, layer_number(self.layer, model.sites.layers_of(site))


ConfigT = TypeVar("ConfigT", bound=CodebookConfig)
BookT = TypeVar("BookT", bound=KeyedBranch)


class CodebookMethod(Method[ConfigT], Generic[ConfigT, BookT]):
    """A method that adds an entry for every edit that the model gets wrong."""

    State: ClassVar[type[BranchState[Any]]]
    capabilities: ClassVar[Capabilities] = Capabilities(gives_weight_patch=False)

    @abstractmethod
    def earlier(self, state: MethodState | None, model: EditableModel, config: ConfigT) -> BookT:
        """The codebook so far. Raises `ConfigError` for another method's state, or that of another place."""

    @abstractmethod
    def replacement(self, config: ConfigT) -> Replacement:
        """Where values are put while they are found; see `training.value_passes`."""

    @abstractmethod
    def inserted(
        self,
        model: EditableModel,
        book: BookT,
        request: EditRequest,
        label: tuple[int, ...],
        found: tuple[Tensor, Tensor],
        config: ConfigT,
        run: EditRun,
    ) -> tuple[BookT, list[str]]:
        """The codebook with one more edit, and the edits whose entries are new or have changed.

        Arguments:
            label: the tokens of the answer.
            found: the query, (in,), what the layer reads at the prompt's last token; and the value, (out,).
        """

    def values(self, model: EditableModel, book: BookT, passes: ValuePasses, found: Tensor) -> Tensor:
        """(rows, out), what is kept of the values that were found: themselves."""
        return found

    @final
    def check_model(self, model: EditableModel, config: ConfigT) -> None:
        model.sites.parameter_name(*config.place(model))

    @final
    def compute(self, model: EditableModel, requests: Sequence[EditRequest], config: ConfigT, run: EditRun) -> Patch:
        book = self.earlier(run.state, model, config)
        encoded = [model.encode(request.prompt, request.target_new) for request in requests]
        scores = model.score([r.prompt for r in requests], [r.target_new for r in requests])
        wrong = [index for index, score in enumerate(scores) if not all(score.matches)]
        if len(wrong) < len(requests):
            count = len(requests) - len(wrong)
            run.diagnostics.notes.append(f"{count} edit(s) were right before, and nothing was added for them.")
        changed: list[str] = []
        for first in range(0, len(wrong), config.forward_batch_size):
            run.progress("values", first, len(wrong))
            chunk = wrong[first : first + config.forward_batch_size]
            with run.clock.stage("values"), frozen_parameters(model.module):
                rows = [encoded[index] for index in chunk]
                passes = value_passes(model, rows, book.site, book.layer, self.replacement(config))
                found, losses = find_values(passes, config)
                with torch.no_grad():
                    found = self.values(model, book, passes, found)
            for row, index in enumerate(chunk):
                request, label = requests[index], encoded[index].target_ids
                pair = passes.queries[row], found[row]
                book, touched = self.inserted(model, book, request, label, pair, config, run)
                changed += touched
                run.diagnostics.losses[request.id] = losses[row]
        run.progress("values", len(wrong), len(wrong))
        run.state = self.State(book)
        run.diagnostics.facts |= {"entries": len(book.entries), "layer": book.layer, "site": book.site}
        return ModulePatch([book.of_edits(changed)])
