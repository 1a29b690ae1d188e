"""What ROME, MEMIT and their kin share: layers, second moments, contexts, target vectors; then each solves its way.

The MLP is read as a memory: what its down-projection W reads at the subject's last token is a key k, what it writes is
a value. An edit finds the value that makes the model say the new answer, and changes W so that k gives it while keys in
general, of which a text gives the second moment C = E[k k^T], give what they gave.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar, final

from pydantic import Field

from palimpsest.locating.contexts import ContextOptions, context_templates
from palimpsest.locating.first_token import apart_from_sink, notes
from palimpsest.locating.spreading import SITE, Spreading, as_patch
from palimpsest.locating.subject_vectors import KeyPooling
from palimpsest.locating.target_vector import TargetOptions, TargetVectors, find_target_vectors
from palimpsest.methods.base import Capabilities, EditRun, Method, MethodConfig
from palimpsest.methods.inspection import inspect
from palimpsest.models.editable import EditableModel
from palimpsest.models.layers import layer_numbers
from palimpsest.patches.weights import WeightPatch
from palimpsest.provenance import digest
from palimpsest.requests import EditRequest
from palimpsest.solve.factorised import Factorised
from palimpsest.solve.solution import Solution
from palimpsest.statistics.prepared import KeyMetrics, Prepared, StatisticsConfig
from palimpsest.statistics.subspaces import Spectrum
from palimpsest.statistics.writing import OWN
from palimpsest.tracing.layers import layers_by_depth

MOST_LAYERS = 5
"""Where layers are chosen by themselves and nobody says how many: at most these."""


class LocateThenEditConfig(MethodConfig):
    """Options that locate-then-edit methods share."""

    layers: list[int] | Literal["auto"] = "auto"
    """Layers whose MLP is changed; negative numbers count from the last. `auto`: those that end at a seventh of the
    model's depth, the same for all facts."""
    num_layers: int | None = Field(default=None, ge=1)
    """How many layers `auto` takes; left out, all up to that depth, at most five."""
    targets: TargetOptions = TargetOptions()
    """The search for target vectors."""
    contexts: ContextOptions = ContextOptions()
    """Texts put in front of the prompts."""
    search_in: Literal["all-contexts", "prompt"] = "all-contexts"
    """Where the search looks for the answer: behind every context, as published, or at the prompts alone."""
    text: str = OWN
    """Text whose keys stay what they are: `own`, what the model itself writes; `wikipedia`, `wikitext`, `world`; a text
    file, a .jsonl, a .parquet, or a folder of them; owner/name of a data set on the hub; or a folder of .npz files as
    published with ROME and MEMIT."""
    statistics: StatisticsConfig = StatisticsConfig()
    """How the second moments of that text's keys are taken."""


class SpreadConfig(LocateThenEditConfig):
    """Options of the methods that edit many facts in several layers."""

    site: Literal["auto", "resid", "mlp.down"] = "auto"
    """Where the vectors are: `resid`, what the last layer's block hands on, as published for MEMIT; `mlp.down`, what
    its MLP writes; `auto` is the first, or the second where a norm follows the MLP."""
    companions: list[str] = []
    """Sites beside it that get a vector of their own in the search, which is then dropped: `attn.out` for PMET."""
    pooling: KeyPooling = "half-clean"
    """How the keys of a fact's contexts are put together: `mean`; `half-clean`, the mean with half of the weight on the
    prompt alone; or `columns`, each as a key of its own. Values that are written exactly are so at the mean in place of
    columns."""
    share: Literal["equal", "square-root"] = "equal"
    """What a layer takes of the missing: the n-th part with n layers left, or one by the square root of n (PMET)."""
    rounds: int = Field(default=1, ge=1)
    """How often all layers are gone through; each round writes what those before have left."""

    def spreading(self, model: EditableModel, layers: Sequence[int]) -> Spreading:
        """The same as the shared loop takes it."""
        best = "resid" if model.sites.architecture.mlp_writes_residual else SITE
        site = best if self.site == "auto" else self.site
        share = math.sqrt if self.share == "square-root" else float
        return Spreading(layers, site, self.pooling, share, self.rounds)


ConfigT = TypeVar("ConfigT", bound=LocateThenEditConfig)
Solutions = dict[int, list[Solution]]


class LocateThenEdit(Method[ConfigT]):
    """Layers, statistics and contexts once, in this order; `change` is what the methods differ in."""

    capabilities: ClassVar[Capabilities] = Capabilities(needs_subject=True, edits_encoder_decoders=False)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._metrics: KeyMetrics | None = None
        self._contexts: tuple[object, tuple[str, ...]] = (None, ())

    def check_model(self, model: EditableModel, config: ConfigT) -> None:
        """See `Method.check_model`; a text that is not there is found here, before anything is computed."""
        super().check_model(model, config)
        layers = range(model.num_layers) if config.layers == "auto" else layer_numbers(config.layers, model.num_layers)
        for layer in layers:
            model.sites.require_weight(SITE, layer)
        _ = self.metrics(config).source

    @final
    def compute(
        self, model: EditableModel, requests: Sequence[EditRequest], config: ConfigT, run: EditRun
    ) -> WeightPatch:
        layers = self._layers(model, config, run)
        run.diagnostics.notes += self.metrics(config).check(model, layers, is_asked_for="text" in self.options)
        with run.clock.stage("statistics"):
            self.prepare(model, layers, config, run)
        with run.clock.stage("contexts"):
            templates = self._templates(model, config)
            requests, sink = apart_from_sink(model, requests, templates, layers[-1])
        change = self.change(model, requests, layers, templates, config, run)
        run.diagnostics.notes += notes(sink)
        run.diagnostics.facts |= {"first_token": sink} if sink else {}
        run.diagnostics.facts |= {
            "layers": layers,
            "templates": list(templates),
            "solves": {str(layer): [one.facts() for one in parts] for layer, parts in change.items()},
        }
        patch = as_patch(model, change, self.name)
        with run.clock.stage("inspection"):
            inspect(model, requests, patch, change, self.prepared(), run)
        return patch

    def prepare(self, model: EditableModel, layers: Sequence[int], config: ConfigT, run: EditRun) -> None:
        """Asks for what the solves need of the text's keys, which may take long: factors of their second moments."""
        factors = self.metrics(config).factors(model, layers, progress=run.progress)
        self.factors: dict[int, Factorised] = record_statistics(factors, run)

    def prepared(self) -> Mapping[int, Factorised | Spectrum]:
        """What `prepare` got, by layer."""
        return self.factors

    @abstractmethod
    def change(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        layers: Sequence[int],
        templates: Sequence[str],
        config: ConfigT,
        run: EditRun,
    ) -> Solutions:
        """The changes of each layer's matrix, which add up; the model is left as it was."""

    def targets(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        layer: int,
        site: str,
        templates: Sequence[str],
        config: ConfigT,
        run: EditRun,
        *,
        companions: Sequence[str] = (),
    ) -> TargetVectors:
        """The target vectors of some facts at a layer, and their records in the diagnostics."""
        with run.clock.stage("targets"):
            found = find_target_vectors(
                model,
                requests,
                layer=layer,
                site=site,
                companions=companions,
                options=config.targets,
                templates=templates if config.search_in == "all-contexts" else templates[:1],
                progress=run.progress,
            )
        run.diagnostics.losses |= found.losses
        run.diagnostics.notes += found.notes()
        searches = run.diagnostics.facts.setdefault("targets", [])
        searches.append({"layer": layer, "site": site, "edits": list(found.ids), **found.facts()})
        return found

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
