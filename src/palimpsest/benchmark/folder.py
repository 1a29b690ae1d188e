"""A folder of results: the plan, one folder for each unit of work, and a lock that one run at a time holds.

plan.json            the recipe and its units
units/ADDRESS/       the unit's run, as `palimpsest eval --out` writes it
done/ADDRESS.json    what a unit is and what became of it, once it is done
base/KEY.json        what each unedited model said, shared by all units on it
prepared/KEY/        what a model was taught before it was edited, as a patch
summary.json         every unit's end, scores and costs, without the answers
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter

from palimpsest.benchmark import choosing, known, preparing
from palimpsest.benchmark.plan import Plan
from palimpsest.benchmark.units import WorkUnit
from palimpsest.errors import OutputError
from palimpsest.files import FileKind, expanded, hold, put_aside, require_writable, write_json
from palimpsest.provenance import now

if TYPE_CHECKING:
    from palimpsest.evaluation import RunRecord

FORMAT_VERSION = 1
PLAN, UNITS, DONE, BASE, PREPARED, RUN = "plan.json", "units", "done", "base", "prepared", "run.json"
LOCK, WORKERS = ".lock", ".workers"

_RESULTS = FileKind(
    OutputError,
    "The results cannot be read.",
    expected=f"{PLAN} and {DONE}/*.json, as `palimpsest bench` writes them",
    remedy="choose another folder; or remove the file and go on with --resume",
)

State = Literal["left", "begun", "ok", "failed", "refused"]
"""`begun`: there are finished edits in its folder; `refused`: the method is not for models of this kind."""


@dataclass(frozen=True)
class Finished:
    """The outcome of a unit.

    Arguments:
        state: `ok`, `failed` or `refused`.
        error: why it is not `ok`.
        seconds: wall-clock time, only of the last worker where several have worked on it.
        peak_memory_bytes: of the worker.
        result: what `palimpsest eval --json` prints, if there is one.
    """

    state: State
    error: str | None = None
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    result: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**vars(self), "result": dict(self.result)}


class ResultsFolder:
    """The folder of a plan's results.

    Arguments:
        path: the folder.
        plan: what is to be in it.
    """

    def __init__(self, path: str | Path, plan: Plan) -> None:
        self.path = expanded(path)
        self.plan = plan

    def prepare(self, *, resume: bool) -> None:
        """Makes the folder, or takes up the one that is there.

        Raises `OutputError` when it exists without `resume`, or is another recipe's or another version's.
        """
        file = self.path / PLAN
        if self.path.exists() and any(not found.name.startswith(".") for found in self.path.iterdir()):
            if not file.exists():
                raise OutputError(
                    "The folder holds something else.",
                    expected=f"a new folder, or one with {PLAN}",
                    where=str(self.path),
                )
            self._check(_read_plan(file), resume=resume)
        record = {
            "format_version": FORMAT_VERSION,
            "palimpsest": version("palimpsest-lm"),
            "updated": now(),
            "recipe": self.plan.recipe.model_dump(mode="json"),
            "units": {unit.address: {**unit.labels(), "identity": unit.identity()} for unit in self.plan.units},
        }
        write_json(file, record, indent=1)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Inside the block no other process runs a plan here. Raises `OutputError` when one does."""
        require_writable(self.path / LOCK)
        with hold(self.path / LOCK):
            yield

    def wait_for_orphans(self) -> None:
        """Returns when no worker of a run that was killed is left; they notice within a second."""
        with (self.path / WORKERS).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)

    def unit_folder(self, unit: WorkUnit) -> Path:
        """Where a unit's run is."""
        return self.path / UNITS / unit.address

    def finished(self, unit: WorkUnit) -> Finished | None:
        """Returns the outcome of a unit, `None` if it is not done."""
        file = self._done_file(unit)
        if not file.exists():
            return None
        try:
            return _RESULTS.record(file, _Done).finished
        except OutputError:
            # Its run is in its folder, whole: the unit is taken up again, and nothing of it computed.
            put_aside(file)
            return None

    def result_of(self, unit: WorkUnit) -> Mapping[str, Any]:
        """Returns what `palimpsest eval --json` prints for a finished unit; empty if it failed or is not done."""
        finished = self.finished(unit)
        return {} if finished is None else finished.result

    def finish(self, unit: WorkUnit, finished: Finished) -> None:
        """Writes what became of a unit."""
        record = {**unit.labels(), "identity": unit.identity(), "finished": finished.to_dict()}
        write_json(self._done_file(unit), record, indent=1)

    def forget_failures(self) -> int:
        """Lets failed units be tried again; returns how many there were.

        What was chosen without a failed candidate is chosen, and measured, again.
        """
        failed = {unit.address for unit in self.plan.units if self.state(unit) == "failed"}
        for unit in self.plan.units:
            is_later = any(other.address in failed for other in unit.waits_for())
            if unit.address in failed or is_later:
                self._done_file(unit).unlink(missing_ok=True)
            if is_later:
                shutil.rmtree(self.unit_folder(unit), ignore_errors=True)
        return len(failed)

    def state(self, unit: WorkUnit) -> State:
        """Where a unit stands."""
        finished = self.finished(unit)
        if finished is not None:
            return finished.state
        return "begun" if (self.unit_folder(unit) / RUN).exists() else "left"

    def _done_file(self, unit: WorkUnit) -> Path:
        return self.path / DONE / f"{unit.address}.json"

    def _check(self, record: _Plan, *, resume: bool) -> None:
        here, there = version("palimpsest-lm"), record.palimpsest
        recipe = str(record.recipe.get("name"))
        if record.format_version != FORMAT_VERSION or there != here:
            raise OutputError(
                "The results were made by another version.",
                expected=f"palimpsest {here}, format {FORMAT_VERSION}",
                found=f"palimpsest {there}, format {record.format_version}",
                where=str(self.path / PLAN),
                remedy="choose another folder: one table cannot mix figures of two versions",
            )
        if recipe != self.plan.recipe.name:
            raise OutputError(
                "The folder holds the results of another recipe.",
                expected=f"results of {self.plan.recipe.name!r}",
                found=f"results of {recipe!r}",
                where=str(self.path),
                remedy="choose another folder",
            )
        if not resume:
            done = sum(self.finished(unit) is not None for unit in self.plan.units)
            raise OutputError(
                "There are results in this folder already.",
                expected="a new folder",
                found=f"{done} of {len(self.plan.units)} units are done",
                where=str(self.path),
                remedy="go on with them: --resume; what is finished is not computed again",
            )


class _Plan(BaseModel):
    """The content of `plan.json`."""

    format_version: int
    palimpsest: str
    recipe: dict[str, Any]
    units: dict[Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")], Any]


class _Done(BaseModel):
    """The content of a file in `done`: the unit's labels in tables, and its outcome."""

    method: str
    model: str
    dataset: str
    finished: Finished


def _read_plan(file: Path) -> _Plan:
    return _RESULTS.record(file, _Plan)


def load_labelled(run: Path) -> RunRecord:
    """The record of a run; one that belongs to a recipe goes by the recipe's labels."""
    from palimpsest.evaluation import load_run

    record, file = load_run(run), run.parent.parent / DONE / f"{run.name}.json"
    if run.parent.name != UNITS or not file.exists():
        return record
    done = _RESULTS.record(file, _Done)
    named = done.model_dump(include={"method", "model", "dataset"})
    notes = [*record.notes, *_accounts(done.finished.result)]
    return record.model_copy(update={"specification": record.specification.model_copy(update=named), "notes": notes})


def _accounts(result: Mapping[str, Any]) -> list[str]:
    """Describes in sentences what the recipe did before it measured a unit."""
    tellers = {"known_to_model": known.in_words, "prepared": preparing.in_words, "choice": choosing.account_in_words}
    return [tell(result[name]) for name, tell in tellers.items() if name in result]


def published_figures(results: Path) -> list[dict[str, Any]]:
    """The published figures that the recipe of a folder of results names; none where it is no such folder."""
    file = results / PLAN
    if not file.exists():
        return []
    with _RESULTS.reading(file):
        return TypeAdapter(list[dict[str, Any]]).validate_python(_read_plan(file).recipe["paper"])


def run_folders(results: Path) -> list[Path]:
    """The runs of a folder of results, in the order of its recipe; none where it is no such folder.

    Candidates are not among them: they were measured on facts that are not reported.
    """
    file = results / PLAN
    units = _read_plan(file).units if file.exists() else {}
    reported = [address for address, labels in units.items() if "candidate_for" not in labels]
    return [folder for address in reported if ((folder := results / UNITS / address) / RUN).exists()]


def unit_counts(folder: ResultsFolder) -> dict[str, int]:
    """How many units stand where."""
    found: dict[str, int] = dict.fromkeys(("ok", "failed", "refused", "begun", "left"), 0)
    for unit in folder.plan.units:
        found[folder.state(unit)] += 1
    return found
