"""Methods whose edits come from something trained beforehand: their training, and finding what it made."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, final

import torch
from pydantic import Field
from torch import Tensor, nn

from palimpsest.errors import ConfigError, DataError
from palimpsest.files import expanded
from palimpsest.methods.base import EditRun, Method, MethodConfig, merged, seeded
from palimpsest.methods.editors import (
    EDITOR,
    EditorRecord,
    TrainedEditor,
    find_editor,
    read_record,
    require_method,
    require_model,
)
from palimpsest.methods.presets import find_preset
from palimpsest.models import EditableModel
from palimpsest.patches import WeightPatch
from palimpsest.provenance import digest, peak_memory_bytes
from palimpsest.requests import EditRequest
from palimpsest.stopwatch import Progress, silent
from palimpsest.training import (
    EditExample,
    Hypernetwork,
    MetaTrainingOptions,
    Objective,
    editing_examples,
    low_rank,
    metatrain,
    split_examples,
)

AUTO, FRESH = "auto", "fresh"


class TrainedConfig(MethodConfig):
    """Options of every method that needs a trained editor."""

    editor: str = AUTO
    """Folder of the trained editor; `auto` takes the bundled or cached one for the model, `fresh` an untrained one."""


class HypernetworkConfig(TrainedConfig):
    """Options of the methods whose editor is a hypernetwork."""

    strength: float = 1.0
    """Factor of the whole change; 1 is what the editor was trained for."""
    forward_batch_size: int = Field(default=64, ge=1)
    """Facts in one pass, forward and backward; smaller needs less memory and gives the same edit."""


ConfigT = TypeVar("ConfigT", bound=TrainedConfig)


class TrainableMethod(Method[ConfigT]):
    """A method with something to train. Leaves implement `build`, `objective` and `compute`.

    Attributes:
        Training: the options of training.
        has_fresh: whether edits can be made with what has not been trained.
    """

    Training: ClassVar[type[MetaTrainingOptions]]
    has_fresh: ClassVar[bool] = False

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._modules: dict[tuple[str, str, int], nn.Module] = {}

    @abstractmethod
    def build(self, model: EditableModel, training: Any) -> nn.Module:
        """Returns the untrained module, on the model's device. Raises `ModelError` for a model without its sites."""

    @abstractmethod
    def objective(self, model: EditableModel, module: Any, training: Any) -> Objective[Any]:
        """Returns the objective of training."""

    def examples(self, model: EditableModel, requests: Sequence[EditRequest]) -> list[EditExample]:
        """Training examples from edits; see `training.examples`."""
        return editing_examples(model, requests)

    def prepared(self, examples: Sequence[EditExample], training: Any) -> list[EditExample]:
        """The examples of one split, to train or to validate with, as the objective needs them."""
        return list(examples)

    def stored(self, module: nn.Module, training: Any) -> dict[str, Tensor]:
        """Returns the tensors of a trained module that are saved."""
        return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @final
    def folder(self, model: EditableModel, config: ConfigT) -> Path:
        """Where the trained editor for a model lies. Raises `ConfigError` if there is none."""
        return find_editor(self.name, model) if config.editor == AUTO else expanded(config.editor)

    @final
    def training_cost(self, model: EditableModel) -> dict[str, float]:
        """Returns the cost of training the editor for a model; nothing if it is untrained or missing."""
        try:
            record = read_record(self.folder(model, self.resolve(model)[0]))
        except (ConfigError, DataError):
            return {}
        return {name: getattr(record, name) for name in ("seconds", "peak_memory_bytes", "num_parameters")}

    @final
    def resolve_training(
        self, model: EditableModel, options: Mapping[str, Any] | None = None
    ) -> tuple[Any, str | None]:
        """The complete options of training for a model, and the preset's name: defaults, preset, options."""
        preset = find_preset(self.name, self.preset, model)
        chosen = merged(preset.training if preset else {}, options or {})
        return self.Training.parse(chosen, owner=f"training of {self.name!r}"), preset.name if preset else None

    @final
    def train(
        self,
        model: EditableModel,
        requests: Sequence[EditRequest],
        options: Mapping[str, Any] | None = None,
        *,
        seed: int = 0,
        checkpoint: str | Path | None = None,
        resume: bool = False,
        progress: Progress = silent,
    ) -> TrainedEditor:
        """Trains an editor for a model. The model is bit-identical before and after.

        Arguments:
            requests: edits with probes: rephrasings that must follow, prompts that must not.
            options: options of the training that differ from the preset's and the defaults.
            seed: seed of everything random.
            checkpoint: a file for the state of the training, so that it can go on after a kill.
            resume: go on from that file, if it is there.

        Raises `DataError` for edits that cannot be trained on, `ConfigError` for unknown options or a training that
        diverges, `ModelError` for a model that the method cannot edit; bad input before anything is computed.
        """
        training, preset = self.resolve_training(model, options)
        with seeded(seed):
            module = self.build(model, training)
            examples = self.examples(model, requests)
            learned, held_out = (
                self.prepared(part, training) for part in split_examples(examples, training.validation_examples, seed)
            )
            data = {
                "edits": len(learned),
                "validation_edits": len(held_out),
                "fingerprint": digest([request.to_dict() for request in requests]),
            }
            identity = {
                "method": self.name,
                "model": model.fingerprint()["weights"],
                "data": data["fingerprint"],
                "seed": seed,
                # How long to go on may be decided anew.
                **training.model_dump(exclude={"steps", "patience"}),
            }
            course = metatrain(
                self.objective(model, module, training),
                learned,
                held_out,
                training,
                seed=seed,
                checkpoint=None if checkpoint is None else Path(checkpoint),
                identity=identity,
                resume=resume,
                progress=progress,
            )
        record = EditorRecord(
            method=self.name,
            preset=preset,
            training=training.model_dump(),
            seed=seed,
            model=model.name,
            base=model.fingerprint(),
            tokenizer=model.tokenizer_digest,
            # What is trained are answers, whatever is thought before them.
            chat=model.chat.at_once().to_dict() if model.chat is not None else None,
            data=data,
            curve=course.curve,
            best_step=course.best_step,
            seconds=course.seconds,
            peak_memory_bytes=peak_memory_bytes(),
            num_parameters=sum(one.numel() for one in module.parameters()),
        )
        return TrainedEditor(self.stored(module, training), record)

    def check(self, requests: Sequence[EditRequest]) -> None:
        super().check(requests)
        editor = str(self.options.get("editor", AUTO))
        if editor not in (AUTO, FRESH):
            # A misspelt folder must not wait for a model to be loaded.
            require_method(read_record(expanded(editor)), self.name)

    def check_model(self, model: EditableModel, config: ConfigT) -> None:
        self.trained(model, config)

    @final
    def trained(self, model: EditableModel, config: ConfigT) -> nn.Module:
        """The trained module for a model. Raises `ConfigError` if there is none, `ModelError` for another model's.

        It is read once and kept for the next edit of the same model.
        """
        key = (config.editor, model.fingerprint()["weights"], config.seed)
        if key not in self._modules:
            self._modules = {key: self._load(model, config)}
        return self._modules[key]

    def _load(self, model: EditableModel, config: ConfigT) -> nn.Module:
        if config.editor == FRESH and self.has_fresh:
            with seeded(config.seed):
                return self.build(model, self.resolve_training(model)[0]).eval()
        folder = self.folder(model, config)
        editor = TrainedEditor.load(folder)
        require_method(editor.record, self.name)
        require_model(editor.record, model)
        with seeded(config.seed):
            training = self.Training.parse(editor.record.training, owner=f"the editor {folder}")
            module = self.build(model, training)
        with EDITOR.reading(folder):
            module.load_state_dict(dict(editor.tensors))
        return module.eval()


def hypernetwork_patch(
    model: EditableModel, network: nn.Module, requests: Sequence[EditRequest], config: HypernetworkConfig, run: EditRun
) -> WeightPatch:
    """The changes that a hypernetwork proposes for the requests, added up: one low-rank delta a weight."""
    if not isinstance(network, Hypernetwork):
        raise TypeError(f"{type(network).__name__} is no hypernetwork")
    size = config.forward_batch_size
    patch = WeightPatch({})
    for start in range(0, len(requests), size):
        run.progress("editing", start, len(requests))
        with run.clock.stage("editor"), torch.no_grad():
            updates = network.propose(model, requests[start : start + size])
            patch = patch + config.strength * WeightPatch(low_rank(model, network.places, updates), patch.manifest)
    run.progress("editing", len(requests), len(requests))
    run.diagnostics.facts |= {"norm": patch.norm(), "weights": [place.name for place in network.places]}
    return patch
