"""One unit of work, done: the model, the data and what the model said before are kept from unit to unit."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from palimpsest.benchmark.entries import identity_of
from palimpsest.benchmark.folder import BASE, PREPARED, Finished
from palimpsest.benchmark.plan import read_dataset
from palimpsest.benchmark.units import WorkUnit
from palimpsest.errors import ModelError, OutputError, PalimpsestError
from palimpsest.files import taking_turns, write_json
from palimpsest.provenance import digest, peak_memory_bytes
from palimpsest.stopwatch import Progress, silent

if TYPE_CHECKING:
    from palimpsest.datasets import Dataset
    from palimpsest.evaluation import BaseAnswers, RunRecord
    from palimpsest.models import EditableModel


@dataclass
class Desk:
    """The cache of a worker: one model, one data set, and the base model's answers.

    Arguments:
        results: the folder of the results.
    """

    results: Path
    _model: tuple[str, EditableModel] | None = None
    _data: tuple[str, Dataset] | None = None
    _answers: dict[str, BaseAnswers] = field(default_factory=dict)
    _knowing: dict[str, tuple[Dataset, dict[str, int]]] = field(default_factory=dict)

    def do(self, unit: WorkUnit, folder: Path, *, progress: Progress = silent) -> Finished:
        """Runs a unit in its folder, or goes on with it there.

        What is wrong with the unit becomes part of what is returned. Raises `OutputError` when the disk refuses.
        """
        start = perf_counter()

        def finished(state: Any, error: str | None = None, result: dict[str, Any] | None = None) -> Finished:
            return Finished(state, error, perf_counter() - start, peak_memory_bytes(), result or {})

        try:
            record, accounts = self._evaluate(unit, folder, progress)
        except OutputError as error:
            if isinstance(error.__cause__, OSError):
                raise
            return finished("failed", f"OutputError: {error}")
        except _NotForModel as refusal:
            return finished("refused", str(refusal))
        except PalimpsestError as error:
            return finished("failed", f"{type(error).__name__}: {error}")
        except Exception as error:  # a unit must not end the others, whatever a library under it raises
            return finished("failed", f"{type(error).__name__}: {error}")
        # The command line says so while it runs; the record has it among its notes.
        damage = [note for note in record.notes if "damaged" in note.lower()]
        result = record.to_json() | accounts | ({"damaged": damage} if damage else {})
        return finished("ok" if record.status == "ok" else "failed", record.error, result)

    def _evaluate(self, unit: WorkUnit, folder: Path, progress: Progress) -> tuple[RunRecord, dict[str, Any]]:
        """The record, and what the recipe did before: which facts it drew, what it taught."""
        from palimpsest.methods import method

        data = self._dataset(unit)
        model = self._load(unit)
        editor = method(unit.method.name, preset=unit.method.preset, **unit.method_options())
        try:
            editor.require(model)
        except ModelError as error:
            raise _NotForModel(str(error)) from error
        accounts: dict[str, Any] = {}
        number = unit.num_edits
        if unit.dataset.known_to_model:
            data, accounts["known_to_model"] = self._known(unit, model, data, progress)
            number = None
        if unit.model.prepare is None:
            return self._measured(unit, model, editor, data, number, folder, progress, ""), accounts
        from palimpsest.benchmark.preparing import prepared

        data = data if number is None else data.sample(number, unit.seed)
        key = digest(
            [identity_of(unit.model, "label"), unit.contents.get(unit.model.name), data.fingerprint, unit.seed]
        )
        place = self.results / PREPARED / key
        with prepared(model, data.requests, unit.model.prepare, seed=unit.seed, folder=place) as accounts["prepared"]:
            return self._measured(unit, model, editor, data, None, folder, progress, key), accounts

    def _measured(
        self,
        unit: WorkUnit,
        model: EditableModel,
        editor: Any,
        data: Dataset,
        num_edits: int | None,
        folder: Path,
        progress: Progress,
        preparation: str,
    ) -> RunRecord:
        from palimpsest.evaluation import evaluate

        answers = self._base(unit, model, preparation)
        known = answers.num_known
        record = evaluate(
            model,
            editor,
            data,
            protocol=unit.protocol.made(),
            num_edits=num_edits,
            seed=unit.seed,
            scorings=unit.evaluation["scorings"],
            max_new_tokens=unit.evaluation["max_new_tokens"],
            neutral_text=None if unit.evaluation["is_perplexity_wanted"] else (),
            out=folder,
            resume=True,
            base=answers,
            measures=unit.evaluation["measures"],
            progress=progress,
        )
        if answers.num_known > known:
            self._share(unit, answers, preparation)
        return record

    def _known(
        self, unit: WorkUnit, model: EditableModel, data: Dataset, progress: Progress
    ) -> tuple[Dataset, dict[str, int]]:
        """The facts of the draw that the model knows; asked once for all units that draw alike, whoever does them."""
        from palimpsest.answers import VERSION
        from palimpsest.benchmark.known import asked_once, known_facts

        room = unit.evaluation["max_new_tokens"]
        identity = [identity_of(unit.model, "label", "prepare"), unit.contents.get(unit.model.name)]
        key = digest([*identity, data.fingerprint, unit.num_edits, unit.seed, room, VERSION])
        if key not in self._knowing:
            ask = partial(known_facts, model, data, unit.num_edits, unit.seed, max_new_tokens=room, progress=progress)
            self._knowing[key] = asked_once(self.results / BASE / f"known-{key}.json", data, ask)
        return self._knowing[key]

    def _load(self, unit: WorkUnit) -> EditableModel:
        key = digest([identity_of(unit.model, "label", "prepare"), unit.root])
        if self._model is None or self._model[0] != key:
            from palimpsest.loading import load

            # The former one goes first: two large models may not fit beside each other.
            self._model, self._answers = None, {}
            entry = unit.model
            place, thinking = unit.located(entry.name), entry.thinking
            loaded = load(place, device=entry.device, dtype=entry.dtype, chat=entry.chat, thinking=thinking)
            self._model = (key, loaded)
        return self._model[1]

    def _dataset(self, unit: WorkUnit) -> Dataset:
        identity = identity_of(unit.dataset, "label", "models", "choose_on")
        key = digest([identity, unit.evaluation["probes_per_kind"], unit.root])
        if self._data is None or self._data[0] != key:
            self._data = (key, read_dataset(unit))
        return self._data[1]

    def _base_file(self, unit: WorkUnit, preparation: str) -> Path:
        from palimpsest.evaluation import FORMAT_VERSION

        identity = [identity_of(unit.model, "label"), FORMAT_VERSION, *([preparation] if preparation else [])]
        return self.results / BASE / f"{digest(identity)}.json"

    def _base(self, unit: WorkUnit, model: EditableModel, preparation: str) -> BaseAnswers:
        """Returns the answers of the unedited model that any worker has recorded so far."""
        from palimpsest.evaluation import BaseAnswers

        file = self._base_file(unit, preparation)
        answers = self._answers.setdefault(file.stem, BaseAnswers())
        answers.belong_to(model)
        answers.absorb(file)
        return answers

    def _share(self, unit: WorkUnit, answers: BaseAnswers, preparation: str) -> None:
        """Adds this worker's answers to the file; only one worker at a time does so."""
        file = self._base_file(unit, preparation)
        try:
            with taking_turns(file):
                answers.absorb(file)
                write_json(file, answers.to_dict())
        except OSError as error:
            raise OutputError("The base model's answers cannot be kept.", found=str(error), where=str(file)) from error


class _NotForModel(Exception):
    """The method cannot edit models of this kind."""
