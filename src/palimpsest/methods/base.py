"""The base of all methods: a name, options, and `edit`, which leaves the model unchanged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar, final

import torch
from pydantic import Field

from palimpsest import processes
from palimpsest.batches import check_requests, originals, without_duplicates
from palimpsest.config import Config
from palimpsest.errors import ConfigError, DataError, ModelError
from palimpsest.methods.checking import look_again, neutral_scores
from palimpsest.methods.outcomes import Diagnostics, EditOutcome, MethodState
from palimpsest.methods.presets import Preset, find_preset
from palimpsest.models import EditableModel
from palimpsest.patches import Manifest, ModulePatch, Patch, WeightPatch
from palimpsest.provenance import hardware, peak_memory_bytes
from palimpsest.requests import EditRequest
from palimpsest.showing import named
from palimpsest.stopwatch import Progress, Stopwatch, silent
from palimpsest.training import FinetuneResult

__all__ = ["Capabilities", "Diagnostics", "EditOutcome", "EditRun", "Method", "MethodConfig", "MethodState"]


class MethodConfig(Config):
    """Options every method has."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of everything random in an edit."""
    look_again: bool = True
    """Whether the patch is looked at before it is handed over: do the edits hold, has ordinary text moved. About two
    forward passes; the patch stays what it is."""


ConfigT = TypeVar("ConfigT", bound=MethodConfig)


@dataclass(frozen=True)
class Capabilities:
    """The abilities and requirements of a method.

    Arguments:
        needs_subject: every request must have a subject.
        needs_old_answer: every request must have `target_old`.
        gives_weight_patch: its patches can be added, scaled and used by F-Learning.
        is_shared_out: several processes can share its work; see `palimpsest.processes`.
        edits_encoder_decoders: whether it takes models with an encoder too, not only decoders.
        leads_away: its changes lead away from a request's answer, so that F-Learning adds what it would subtract.
    """

    needs_subject: bool = False
    needs_old_answer: bool = False
    gives_weight_patch: bool = True
    is_shared_out: bool = False
    edits_encoder_decoders: bool = True
    leads_away: bool = False


@dataclass
class EditRun:
    """The context of one call of `edit`, passed to `compute` with the model and the requests.

    Arguments:
        worded: the requests as the model is to say them, where `compute` words them in another way.
    """

    state: MethodState | None
    clock: Stopwatch
    diagnostics: Diagnostics
    progress: Progress
    worded: Sequence[EditRequest] = ()

    def record_training(self, result: FinetuneResult, patch: WeightPatch) -> None:
        """Keeps the loss curves, the steps taken and the size of the change."""
        self.diagnostics.losses = result.losses
        self.diagnostics.facts |= {"steps": result.steps, "final_loss": result.final_loss, "norm": patch.norm()}


class Method(ABC, Generic[ConfigT]):
    """A way to edit. Leaves are final: they implement `compute` and nothing overrides it again.

    Arguments:
        name: the name it is registered under.
        options: options that differ from the defaults.
        preset: name of a preset, `"auto"` for the one that fits the model, or `"none"`.
        variant: options that the registered name itself fixes.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    State: ClassVar[type[MethodState] | None] = None
    capabilities: ClassVar[Capabilities] = Capabilities()

    def __init__(
        self,
        name: str,
        options: Mapping[str, Any] | None = None,
        *,
        preset: str = "auto",
        variant: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.options = dict(options or {})
        self.preset = preset
        self.variant = dict(variant or {})
        # A misspelt option must not wait for a model to be loaded.
        self.Config.parse({**self.variant, **self.options}, owner=f"method {name!r}")

    def __repr__(self) -> str:
        return named(self, repr(self.name), *(f"{name}={value!r}" for name, value in self.options.items()))

    @property
    def carries_state(self) -> bool:
        """Whether an edit with these options returns a state for the next one."""
        return self.State is not None

    def resolve(self, model: EditableModel) -> tuple[ConfigT, Preset | None]:
        """The complete configuration for a model: defaults, then variant, preset and options, later ones winning."""
        preset = find_preset(self.name, self.preset, model)
        chosen = merged(merged(self.variant, preset.options if preset else {}), self.options)
        config: Any = self.Config.parse(chosen, owner=f"method {self.name!r}")
        return config, preset

    @final
    def edit(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        state: MethodState | None = None,
        *,
        progress: Progress = silent,
    ) -> EditOutcome:
        """Computes a patch that makes the requests true. The model is bit-identical before and after.

        Raises `DataError` for contradictory requests or a missing subject or old answer, `ConfigError` for what the
        method cannot do, `ModelError` for a model that it cannot edit; all before anything is computed.
        """
        config, preset = self.resolve(model)
        self.check(requests)
        self.require(model, config)
        unique = without_duplicates(requests)
        require_new_tokens(model, unique)
        run = EditRun(state, Stopwatch(), Diagnostics(notes=unknown_tokens(model, unique)), progress)
        if preset is not None:
            run.diagnostics.notes += preset.mismatches(model)
        if len(unique) < len(requests):
            run.diagnostics.notes.append(f"{len(requests) - len(unique)} repeated request(s) were merged.")
        stacked_on = model.weights.labels
        with run.clock.stage("other"), seeded(config.seed):
            patch = self.compute(model, unique, config, run) if unique else _nothing()
            # Several processes hold a share of the patch each until it is saved.
            if unique and config.look_again and processes.count() == 1:
                _look_again(model, run.worded or unique, patch, run)
        _finish(run)
        _answer_repetitions(run.diagnostics, requests, unique)
        patch.manifest = Manifest(
            kind=patch.kind,
            label=self.name,
            method=self.name,
            preset=preset.name if preset else None,
            config=config.model_dump(),
            seed=config.seed,
            model=model.name,
            base=model.fingerprint(patch.touched() if isinstance(patch, WeightPatch | ModulePatch) else ()),
            chat=model.chat.to_dict() if model.chat is not None else None,
            stacked_on=stacked_on,
            hardware=hardware(),
            edits=[request.to_dict() for request in requests],
            diagnostics={
                "seconds": run.diagnostics.seconds,
                "peak_memory_bytes": run.diagnostics.peak_memory_bytes,
                "facts": run.diagnostics.facts,
                "notes": run.diagnostics.notes,
            },
        )
        return EditOutcome(patch, run.state, run.diagnostics)

    @abstractmethod
    def compute(self, model: EditableModel, requests: Sequence[EditRequest], config: ConfigT, run: EditRun) -> Patch:
        """The method's mathematics: from checked, distinct, non-empty requests to a patch.

        Must leave the model as it found it, also when it raises.
        """

    @final
    def require(self, model: EditableModel, config: ConfigT | None = None) -> None:
        """Raises when the model cannot be edited with these options; costs nothing.

        Arguments:
            config: the complete configuration; left out, as `resolve` gives it.

        `ModelError` for what no option can mend, such as an MLP matrix in a mixture of experts or weights that are not
        quantised; `ConfigError` for an option that has to be given.
        """
        if model.is_encoder_decoder and not self.capabilities.edits_encoder_decoders:
            raise ModelError(
                f"The method {self.name!r} supports decoder-only models.",
                expected="a model without an encoder, whose one stack of layers reads the prompt and writes the answer",
                found=f"an encoder-decoder, {model.name!r}",
                remedy="take ft, lora, kn, grace, t-patcher or F-Learning, which edit both kinds",
            )
        self.check_model(model, self.resolve(model)[0] if config is None else config)

    def check_model(self, model: EditableModel, config: ConfigT) -> None:
        """Checks the method's own requirements on a model; see `require`."""

    def training_cost(self, model: EditableModel) -> dict[str, float]:
        """Returns the cost of training, for methods that are trained; else nothing."""
        del model
        return {}

    @property
    def needs_subject(self) -> bool:
        """Whether every request must have a subject, with these options."""
        return self.capabilities.needs_subject

    def check(self, requests: Sequence[EditRequest]) -> None:
        """Raises when the requests are not what the method needs; costs nothing."""
        check_requests(
            requests,
            needs_subject=self.needs_subject,
            needs_old_answer=self.capabilities.needs_old_answer,
        )
        if processes.count() > 1 and not self.capabilities.is_shared_out:
            raise ConfigError(
                f"The method {self.name!r} works in one process.",
                expected="one process, or a method that fine-tunes the weights themselves, such as ft or f-learning-ft",
                found=f"{processes.count()} processes",
                remedy="start it without torchrun or accelerate launch",
            )


def merged(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Options with those of `upper` winning; options inside options are merged likewise."""
    both = {key: merged(lower[key], value) for key, value in upper.items() if _are_tables(lower.get(key), value)}
    return {**lower, **upper, **both}


def _are_tables(first: object, second: object) -> bool:
    return isinstance(first, Mapping) and isinstance(second, Mapping)


def require_new_tokens(model: EditableModel, requests: Sequence[EditRequest]) -> None:
    """Raises `DataError` for an edit whose new answer is, to the tokenizer, the old one."""
    for request in requests:
        if request.target_old is None:
            continue
        new, old = (model.encode(request.prompt, text).target_ids for text in (request.target_new, request.target_old))
        if new == old:
            raise DataError(
                "To the tokenizer the new answer is the old one, so there is nothing to edit.",
                expected="`target_new` and `target_old` of different tokens",
                found=f"{request.target_new!r} and {request.target_old!r}, both {list(new)}: "
                + " ".join(map(repr, model.tokenizer.convert_ids_to_tokens(list(new)))),
                where=f"the edit {request.id or request.prompt!r}",
                remedy="drop the record, or write one of the two another way",
            )


def unknown_tokens(model: EditableModel, requests: Sequence[EditRequest]) -> list[str]:
    """A note, when the tokenizer reads some of the new answers as its unknown token; else nothing."""
    unknown = model.tokenizer.unk_token_id
    # Some tokenizers name their end of sequence as the unknown token too, and never use it so.
    if unknown is None or unknown == model.tokenizer.eos_token_id:
        return []
    found = [r.target_new for r in requests if unknown in model.encode(r.prompt, r.target_new).target_ids]
    if not found:
        return []
    shown = ", ".join(map(repr, found[:3])) + (" ..." if len(found) > 3 else "")
    return [f"The tokenizer has no tokens for all of {len(found)} new answer(s), which cannot be written: {shown}"]


class seeded:  # a verb where it is used
    """Inside the block torch's generators start from a seed; afterwards they are what they were."""

    def __init__(self, seed: int) -> None:
        # Seeding reaches every CUDA device, whichever the model is on.
        devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
        self._fork = torch.random.fork_rng(devices=list(devices))
        self._seed = seed

    def __enter__(self) -> None:
        self._fork.__enter__()
        torch.manual_seed(self._seed)

    def __exit__(self, *failure: Any) -> None:
        self._fork.__exit__(*failure)


def _nothing() -> WeightPatch:
    return WeightPatch({}, Manifest(label="nothing"))


def _answer_repetitions(found: Diagnostics, requests: Sequence[EditRequest], unique: Sequence[EditRequest]) -> None:
    """Gives a request that repeats another the other's replies, so that there is one for every request."""
    if found.replies is not None and len(unique) < len(requests):
        places = {id(one): place for place, one in enumerate(unique)}
        before, after = ([texts[places[id(one)]] for one in originals(requests)] for texts in found.replies)
        found.replies = before, after


def _look_again(model: EditableModel, requests: Sequence[EditRequest], patch: Patch, run: EditRun) -> None:
    with run.clock.stage("checking"):
        look = look_again(model, requests, patch, neutral_scores(model))
    run.diagnostics.facts["checked"] = look.facts
    run.diagnostics.notes += look.notes


def _finish(run: EditRun) -> None:
    seconds = {name: spent for name, spent in run.clock.seconds.items() if name != "other" or spent > 1e-4}
    run.diagnostics.seconds = {**seconds, "total": sum(run.clock.seconds.values())}
    run.diagnostics.peak_memory_bytes = peak_memory_bytes()
