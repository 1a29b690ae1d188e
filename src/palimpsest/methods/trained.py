"""Methods whose edits come from something trained beforehand: the editor, a folder bound to one model."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, final

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from palimpsest.errors import ConfigError, DataError, ModelError
from palimpsest.methods.base import Method, MethodConfig, Run, merged, seeded
from palimpsest.methods.presets import find_preset
from palimpsest.models.editable import EditableModel
from palimpsest.models.fingerprint import differences
from palimpsest.optimise.examples import EditExample, editing_examples, split_examples
from palimpsest.optimise.gradient_factors import low_rank
from palimpsest.optimise.hypernetwork import Hypernetwork
from palimpsest.optimise.metatraining import MetaTrainingOptions, Objective, metatrain
from palimpsest.patches.base import Manifest
from palimpsest.patches.storage import write_tensors
from palimpsest.patches.weights import WeightPatch
from palimpsest.provenance import digest, file_digest, new_folder, now, peak_memory_bytes, versions
from palimpsest.requests import EditRequest
from palimpsest.statistics.cache import default_folder
from palimpsest.stopwatch import Progress, silent
from palimpsest.world import bundled_editors

FORMAT_VERSION = 1
TENSORS, RECORD = "editor.safetensors", "editor.json"
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


class EditorRecord(BaseModel):
    """What an editor says of itself. Written beside its tensors as `editor.json`."""

    model_config = ConfigDict(extra="forbid")

    format_version: int = FORMAT_VERSION
    method: str
    preset: str | None = None
    training: dict[str, Any]
    """Every option of the training with its value, defaults included."""
    seed: int
    model: str
    base: dict[str, Any]
    """Fingerprint of the model it was trained for."""
    tokenizer: str
    chat: dict[str, str] | None = None
    data: dict[str, Any]
    """What it was trained on: numbers of edits and a fingerprint."""
    curve: list[dict[str, Any]]
    """One entry a validation; see `optimise.metatraining.Course`."""
    best_step: int
    seconds: float
    peak_memory_bytes: int
    num_parameters: int
    versions: dict[str, str] = Field(default_factory=versions)
    created: str = Field(default_factory=now)
    tensors_sha256: str | None = None


@dataclass(frozen=True)
class TrainedEditor:
    """What training gives: numbers by name, and where they come from."""

    tensors: Mapping[str, Tensor]
    record: EditorRecord

    def save(self, path: str | Path) -> None:
        """Writes a new folder that appears complete or not at all. Raises `OutputError` when it exists."""
        with new_folder(Path(path)) as draft:
            stored = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
            write_tensors(stored, draft / TENSORS)
            record = self.record.model_copy(update={"tensors_sha256": file_digest(draft / TENSORS)})
            text = json.dumps(record.model_dump(), indent=1, ensure_ascii=False, default=str)
            (draft / RECORD).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> TrainedEditor:
        """Reads what `save` wrote. Raises `DataError` for a folder that is none, or is truncated or altered."""
        folder = Path(path).expanduser()
        record = read_record(folder)
        try:
            if file_digest(folder / TENSORS) != record.tensors_sha256:
                raise _broken(folder, f"{TENSORS} with another SHA-256 than was saved: truncated or altered")
            return cls(load_file(folder / TENSORS), record)
        except (OSError, SafetensorError) as error:
            raise _broken(folder, f"{TENSORS} cannot be read: {error}") from error


def read_record(folder: Path) -> EditorRecord:
    """Reads and checks an editor's record alone. Raises `DataError` as `TrainedEditor.load` does."""
    file = folder / RECORD
    if not file.is_file():
        raise _broken(folder, "nothing of that name" if not folder.exists() else f"no {RECORD}")
    try:
        record = EditorRecord.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, ValidationError) as error:
        raise _broken(folder, f"{RECORD} is not a record: {str(error).splitlines()[0]}") from error
    if record.format_version > FORMAT_VERSION:
        raise _broken(folder, f"format {record.format_version}, of a later version; update palimpsest")
    return record


def require_method(record: EditorRecord, method: str) -> None:
    """Raises `ConfigError` for another method's editor."""
    if record.method != method:
        raise ConfigError(
            f"The editor was trained for the method {record.method!r}.",
            expected=f"an editor for {method!r}",
            found=f"one for {record.method!r}",
            where="option editor",
            remedy=f"take --method {record.method}, or another editor",
        )


def require_model(record: EditorRecord, model: EditableModel) -> None:
    """Raises `ModelError`, which says what differs, for another model's editor."""
    lines = disagreements(record, model)
    if lines:
        raise ModelError(
            "The editor was trained for another model.",
            expected=f"the model it was trained for ({record.model})",
            found="; ".join(lines[:6]),
            where=f"model {model.name!r}",
            remedy=f"load that model, or train one for this: palimpsest train {record.method} {model.name} ...",
        )


def disagreements(record: EditorRecord, model: EditableModel) -> list[str]:
    """What the model differs in from the one that an editor was trained for; empty when it is that one."""
    lines = differences(record.base, model.fingerprint(), owner="the editor")
    if record.tokenizer != model.tokenizer_digest:
        lines.append("the tokenizer is another one")
    if record.chat != (model.chat.to_dict() if model.chat is not None else None):
        lines.append("one is asked in a chat, the other with plain prompts, or the chats differ")
    return lines


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
        """What is trained, as it begins, on the model's device. Raises `ModelError` for a model without its sites."""

    @abstractmethod
    def objective(self, model: EditableModel, module: Any, training: Any) -> Objective[Any]:
        """What the module is trained for."""

    def examples(self, model: EditableModel, requests: Sequence[EditRequest]) -> list[EditExample]:
        """Training examples from edits; see `optimise.examples`."""
        return editing_examples(model, requests)

    def prepared(self, examples: Sequence[EditExample], training: Any) -> list[EditExample]:
        """The examples of one split, to train or to validate with, as the objective needs them."""
        return list(examples)

    def stored(self, module: nn.Module, training: Any) -> dict[str, Tensor]:
        """What of a trained module is saved."""
        return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @final
    def folder(self, model: EditableModel, config: ConfigT) -> Path:
        """Where the trained editor for a model lies. Raises `ConfigError` where there is none."""
        return self._find(model) if config.editor == AUTO else Path(config.editor).expanduser()

    @final
    def training_cost(self, model: EditableModel) -> dict[str, float]:
        """What the editor for a model took to train; nothing for one that is not trained, or where there is none."""
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
            chat=model.chat.to_dict() if model.chat is not None else None,
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
            require_method(read_record(Path(editor).expanduser()), self.name)

    def check_model(self, model: EditableModel, config: ConfigT) -> None:
        self.trained(model, config)

    @final
    def trained(self, model: EditableModel, config: ConfigT) -> nn.Module:
        """The trained module for a model. Raises `ConfigError` where there is none, `ModelError` for another model's.

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
            module = self.build(model, self.Training.parse(editor.record.training, owner=f"the editor {folder}"))
        module.load_state_dict(dict(editor.tensors))
        return module.eval()

    def _find(self, model: EditableModel) -> Path:
        """The editor for this method and model among the bundled and cached ones. Raises `ConfigError`."""
        for folder in _known_editors():
            record = read_record(folder)
            if record.method == self.name and not disagreements(record, model):
                return folder
        raise ConfigError(
            f"The method {self.name!r} needs an editor trained for this model, and there is none.",
            expected=f"an editor for {model.name!r}, bundled, in {default_folder() / 'editors'}, or given",
            found="none",
            where="option editor",
            remedy=f"palimpsest train {self.name} {model.name} --data FILE --out my-{self.name}, then --editor"
            f" my-{self.name}",
        )


def _known_editors() -> Iterator[Path]:
    for place in (bundled_editors(), default_folder() / "editors"):
        yield from sorted(file.parent for file in place.glob(f"*/{RECORD}"))


def _broken(folder: Path, found: str) -> DataError:
    return DataError(
        "This is not a readable editor.",
        expected=f"a folder with {RECORD} and {TENSORS}",
        found=found,
        where=str(folder),
        remedy="point to a folder that `palimpsest train --out` wrote",
    )


def hypernetwork_patch(
    model: EditableModel, network: nn.Module, requests: Sequence[EditRequest], config: HypernetworkConfig, run: Run
) -> WeightPatch:
    """The changes that a hypernetwork proposes for the requests, added up: one low-rank delta a weight."""
    if not isinstance(network, Hypernetwork):
        raise TypeError(f"{type(network).__name__} is no hypernetwork")
    size = config.forward_batch_size
    patch = WeightPatch({}, Manifest(label="update"))
    for start in range(0, len(requests), size):
        run.progress("editing", start, len(requests))
        with run.clock.stage("editor"), torch.no_grad():
            updates = network.propose(model, requests[start : start + size])
            patch = patch + config.strength * WeightPatch(low_rank(model, network.places, updates), patch.manifest)
    run.progress("editing", len(requests), len(requests))
    run.diagnostics.facts |= {"norm": patch.norm(), "weights": [place.name for place in network.places]}
    return patch
