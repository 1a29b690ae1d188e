"""Shared by ROME, MEMIT and their kin: layers, second moments, contexts, target vectors. Each has its own solver.

The MLP is read as a memory: what its down-projection W reads at the subject's last token is a key k, what it writes is
a value. An edit finds the value that makes the model say the new answer, and changes W so that k gives it while keys in
general, of which a text gives the second moment C = E[k k^T], give what they gave.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, final

from palimpsest.locating import apart_from_sink, as_patch, context_templates, first_token_notes
from palimpsest.methods.base import Capabilities, EditRun, Method
from palimpsest.methods.inspection import inspect
from palimpsest.methods.problem import ConfigT, Problem, Solutions
from palimpsest.models import EditableModel, layer_numbers
from palimpsest.models.sites import MLP_DOWN
from palimpsest.patches import WeightPatch
from palimpsest.provenance import digest
from palimpsest.requests import EditRequest
from palimpsest.statistics import KeyMetrics, Prepared
from palimpsest.tracing import layers_by_depth

MOST_LAYERS = 5
"""Default number of automatically chosen layers: at most these."""


class LocateThenEdit(Method[ConfigT]):
    """Layers, statistics and contexts once, in this order; `solutions` is what the methods differ in."""

    capabilities: ClassVar[Capabilities] = Capabilities(needs_subject=True, edits_encoder_decoders=False)

    reads: ClassVar[Literal["factors", "spectra"]] = "factors"
    """What is read of the text's keys: factorised second moments, or their eigenvalues and eigenvectors."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._metrics: KeyMetrics | None = None
        self._contexts: tuple[object, tuple[str, ...]] = (None, ())

    @property
    def needs_subject(self) -> bool:
        """See `Method.needs_subject`; vectors in front of the chunks of an answer are not at the subject."""
        targets = self.options.get("targets") or {}
        return not (targets.get("chunk") if isinstance(targets, Mapping) else targets.chunk)

    def check_model(self, model: EditableModel, config: ConfigT) -> None:
        """See `Method.check_model`; a text that is not there is found here, before anything is computed."""
        layers = range(model.num_layers) if config.layers == "auto" else layer_numbers(config.layers, model.num_layers)
        for layer in layers:
            model.sites.require_weight(MLP_DOWN, layer, takes_experts=True)
        _ = self.metrics(config).source

    @final
    def compute(
        self, model: EditableModel, requests: Sequence[EditRequest], config: ConfigT, run: EditRun
    ) -> WeightPatch:
        layers = self._layers(model, config, run)
        known = self.metrics(config)
        run.diagnostics.notes += known.check(model, layers, is_asked_for="text" in self.options)
        with run.clock.stage("statistics"):
            prepare = known.spectra if self.reads == "spectra" else known.factors
            metrics = record_statistics(prepare(model, layers, progress=run.progress), run)
        with run.clock.stage("contexts"):
            templates = self._templates(model, config)
            # Chunks of an answer are not written at the subject, wherever that is.
            sink: dict[str, Any] = {}
            if not config.targets.chunk:
                requests, sink = apart_from_sink(model, requests, templates, layers[-1])
        problem = Problem(model, requests, layers, templates, config, metrics, run)
        solutions = self.solutions(problem)
        run.diagnostics.notes += first_token_notes(sink)
        run.diagnostics.facts |= {"first_token": sink} if sink else {}
        run.diagnostics.facts |= {
            "layers": layers,
            "templates": list(templates),
            "solves": {str(layer): [one.facts() for one in parts] for layer, parts in solutions.items()},
        }
        patch = as_patch(model, solutions)
        with run.clock.stage("inspection"):
            inspect(problem, patch, solutions)
        return patch

    @abstractmethod
    def solutions(self, problem: Problem[ConfigT]) -> Solutions:
        """The changes of each layer's matrix, which add up; the model is left as it was."""

    def metrics(self, config: ConfigT) -> KeyMetrics:
        """Second moments, kept from edit to edit under everything that determines them."""
        if self._metrics is None or (self._metrics.text, self._metrics.config) != (config.text, config.statistics):
            self._metrics = KeyMetrics(config.text, config.statistics)
        return self._metrics

    def _templates(self, model: EditableModel, config: ConfigT) -> tuple[str, ...]:
        """The base model's own contexts, as in the reference code, so that they are the same in a whole sequence."""
        key = (digest(model.fingerprint()), config.contexts, config.seed)
        if self._contexts[0] != key:
            with model.weights.without_changes():
                self._contexts = (key, context_templates(model, config.contexts, seed=config.seed))
        return self._contexts[1]

    def _layers(self, model: EditableModel, config: ConfigT, run: EditRun) -> list[int]:
        if config.layers != "auto":
            return layer_numbers(config.layers, model.num_layers)
        layers, record = layers_by_depth(model, config.num_layers, most=MOST_LAYERS)
        run.diagnostics.facts["layers_chosen"] = record
        return layers


def record_statistics(prepared: dict[int, Prepared[Any]], run: EditRun) -> dict[int, Any]:
    """The prepared values by layer; what is worth knowing of each goes to the diagnostics."""
    run.diagnostics.notes += dict.fromkeys(note for one in prepared.values() for note in one.notes)
    run.diagnostics.facts["statistics"] = {str(layer): one.facts for layer, one in prepared.items()}
    return {layer: one.value for layer, one in prepared.items()}
