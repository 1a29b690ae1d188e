"""The finished part of a run, in memory and, if a folder is given, always on disk.

A folder holds `run.json` (the specification, written first), `base.json` (the base model's answers) and
`records.jsonl`: the probe lines of one unit of work are appended in one write, closed by the unit's own line
with `"done": true`, and forced to the disk. What follows the last such line was never finished and is
dropped; a damaged line before it is named, and its unit computed again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from palimpsest.errors import OutputError, PalimpsestError
from palimpsest.evaluation.answers import BaseAnswers
from palimpsest.evaluation.records import FailedEdit, ProbeResult, Specification
from palimpsest.files import FileKind, append, hold, require_absent, said, to_json, write_json, write_text
from palimpsest.patches import Patch, load_patch
from palimpsest.provenance import now

FORMAT_VERSION = 1
STATE = "state.safetensors"
RUN, RECORDS, BASE, LOCK = "run.json", "records.jsonl", "base.json", ".lock"
RUN_FOLDER = FileKind(
    OutputError, "The folder is not that of a run.", expected=f"a folder with {RUN}, as an evaluation writes it"
)


class Unit(BaseModel):
    """A finished piece of work: its own line in the file, after its probes."""

    model_config = ConfigDict(extra="forbid")

    unit: str
    done: Literal[True] = True
    seconds: dict[str, float] = Field(default_factory=dict)
    edit_seconds: float = 0.0
    num_edits: int = 0
    """In sequential runs: how many edits had been made by then."""
    perplexity: float | None = None
    patch_bytes: int | None = None
    patch_norm: float | None = None
    measures: dict[str, float] = Field(default_factory=dict)
    """What else was asked for, by name; of the unedited model in the unit `base`."""
    peak_memory_bytes: int = 0
    failed_edits: list[FailedEdit] = Field(default_factory=list)
    patch: str | None = None
    """Name of the folder that holds the running patch; `None` when there is none, or it cannot be stored."""
    num_probes: int | None = None
    """How many lines of probes it has before its own."""
    is_stored: bool = False
    """Whether a sequential run can go on from here without editing again."""


class Journal:
    """The finished units of a run.

    Arguments:
        folder: where they are kept; `None` keeps them in memory only.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.units: dict[str, Unit] = {}
        self.results: dict[str, list[ProbeResult]] = {}
        self.damaged: list[str] = []
        """Lines that could not be read, each with its place and what is wrong."""
        self.notes: list[str] = []
        """What else was damaged, as sentences."""
        self._num_intact = 0
        self._held = contextlib.ExitStack()

    @classmethod
    def start(cls, folder: Path | None, specification: Specification, *, resume: bool) -> Journal:
        """A new journal, or the one of an interrupted run.

        Raises `OutputError` when the folder exists and `resume` is false, when it is not a run's, or is that
        of a run with another specification.
        """
        journal = cls(folder)
        if folder is None:
            return journal
        if not (resume and folder.exists()):
            require_absent(folder)
        elif (folder / RUN).exists():
            recorded, _, _ = read_run(folder)
            lines = recorded.differences(specification)
            if lines:
                shown = lines[:6] + ([f"and {len(lines) - 6} more"] if len(lines) > 6 else [])
                raise OutputError(
                    "The folder holds another run.",
                    expected="the same specification as that of the interrupted run",
                    found="; ".join(shown),
                    where=str(folder),
                    remedy="resume it with what it was started with, or choose another folder",
                )
            journal.lock()
            journal.take_over(is_chain=specification.protocol == "sequential")
            return journal
        elif not folder.is_dir() or any(not file.name.startswith(".") for file in folder.iterdir()):
            raise OutputError(
                "The output is not the folder of a run.",
                expected=f"a folder with {RUN} in it, or an empty one",
                found="other files" if folder.is_dir() else "a file",
                where=str(folder),
                remedy="choose another folder",
            )
        journal.lock()
        journal.write_status(specification, "running")
        return journal

    def lock(self) -> None:
        """Keeps other runs out of the folder until `close`. Raises `OutputError` where another one is at work in it."""
        if self.folder is not None:
            self._held.enter_context(hold(self.folder / LOCK))

    def close(self) -> None:
        """Lets others in."""
        self._held.close()

    def read(self) -> int:
        """Reads the finished units; returns how many bytes they take. Changes nothing on the disk."""
        if self.folder is None or not (self.folder / RECORDS).exists():
            return 0
        return self._parse(self.folder / RECORDS)

    def take_over(self, *, is_chain: bool = False) -> None:
        """Reads the finished units and drops what is not, so that new ones can be appended.

        An unfinished tail is cut off. A unit with a damaged line goes out of the file, and is computed again.

        Arguments:
            is_chain: each unit builds on those before it, so that what follows a damaged one goes too.
        """
        finished = self.read()
        if self.folder is None or not (self.folder / RECORDS).exists():
            return
        if not self.damaged:
            with RUN_FOLDER.reading(self.folder / RECORDS):
                os.truncate(self.folder / RECORDS, finished)
            return
        for name in list(self.units)[self._num_intact :] if is_chain else ():
            del self.units[name], self.results[name]
        for unit in self.units.values():
            if unit.patch is not None and not (self.folder / unit.patch).is_dir():
                # Its running patch has gone with the ones that came after it.
                unit.patch, unit.is_stored = None, False
        self._write_all()

    def put_in_order(self) -> None:
        """After units of the middle were computed again: the file is what it would be had nothing happened to it."""
        if not self.damaged:
            return
        order = sorted(self.units, key=_place)
        self.units = {name: self.units[name] for name in order}
        self.results = {name: self.results[name] for name in order}
        self._write_all()

    def _write_all(self) -> None:
        if self.folder is not None:
            text = "".join(_text(self.units[name], self.results[name]) for name in self.units)
            write_text(self.folder / RECORDS, text)

    def add(self, unit: Unit, results: list[ProbeResult]) -> None:
        """Takes over a finished unit: on disk when this returns. Raises `OutputError` when the disk refuses."""
        unit.num_probes = len(results)
        if self.folder is not None:
            try:
                append(self.folder / RECORDS, _text(unit, results))
            except OSError as error:
                raise _refused(self.folder / RECORDS, error) from error
        self.units[unit.unit] = unit
        self.results[unit.unit] = results

    def write_status(
        self,
        specification: Specification,
        status: str,
        *,
        error: str | None = None,
        result: dict[str, Any] | None = None,
    ) -> None:
        """Writes `run.json`, whole or not at all."""
        if self.folder is None:
            return
        record = {
            "format_version": FORMAT_VERSION,
            "specification": specification.model_dump(mode="json"),
            "status": status,
            "error": error,
            "updated": now(),
            "result": result,
        }
        write_json(self.folder / RUN, record, indent=2)

    # The base model's answers

    def keep_base(self, base: BaseAnswers) -> None:
        """Writes what the base model said, so that a resumed run need not ask again."""
        if self.folder is not None:
            write_json(self.folder / BASE, base.to_dict())

    def recall_base(self, base: BaseAnswers) -> None:
        """Gives back what `keep_base` wrote, if anything; a damaged file is put aside, and the model asked again."""
        if self.folder is not None:
            base.absorb(self.folder / BASE)
        self.notes += base.take_notes()

    # The running patch of a sequential run

    def keep_patch(self, patch: Patch, num_edits: int, state: Any = None) -> str | None:
        """Writes the running patch, and the state of the method, beside the former one; returns its name.

        Returns `None` without a folder.
        """
        if self.folder is None:
            return None
        name = f"patch-{num_edits}"
        # One of that name without its unit's line is what a killed run left behind.
        shutil.rmtree(self.folder / name, ignore_errors=True)
        patch.save(self.folder / name)
        if state is not None:
            state.save(self.folder / name / STATE)
        return name

    def drop_patches(self, *, but: str | None) -> None:
        """Removes running patches that a later one has replaced."""
        if self.folder is not None:
            for old in self.folder.glob("patch-*"):
                if old.name != but:
                    shutil.rmtree(old, ignore_errors=True)

    def recall_patch(self, unit: Unit) -> Patch | None:
        """The running patch that a unit stored, if it stored one. Raises `PatchError` for an altered one."""
        if self.folder is None or unit.patch is None:
            return None
        return load_patch(self.folder / unit.patch)

    def recall_state(self, unit: Unit, kind: Any) -> Any:
        """The method's state that a unit stored beside its patch, if any; `kind` is the class that loads it."""
        file = self.folder / unit.patch / STATE if self.folder is not None and unit.patch is not None else None
        return kind.load(file) if file is not None and file.exists() else None

    def _parse(self, file: Path) -> int:
        """Fills in the units; returns how many bytes are finished.

        A damaged line costs the unit that it stands in, and no other.
        """
        finished = 0
        waiting: dict[str, list[ProbeResult]] = {}
        damage: list[str] = []
        for line in RUN_FOLDER.lines(file):
            try:
                if line.damage is not None:
                    raise ValueError(line.damage)
                name, result = _read_line(line.value)
            except ValueError as error:
                damage.append(f"{file}:{line.number}: {said(error)}")
                continue
            if isinstance(result, ProbeResult):
                waiting.setdefault(name, []).append(result)
                continue
            results = waiting.pop(name, [])
            is_whole = not damage if result.num_probes is None else result.num_probes == len(results)
            if is_whole:
                self.units[name], self.results[name] = result, results
            elif not damage:
                damage.append(f"{file}:{line.number}: the unit {name} lacks some of its lines")
            self._mark(damage)
            # What waits belongs to a unit whose own line is damaged.
            waiting, damage, finished = {}, [], line.end
        return finished

    def _mark(self, damage: list[str]) -> None:
        if damage and not self.damaged:
            self._num_intact = len(self.units)
        self.damaged += damage


def _read_line(line: Any) -> tuple[str, ProbeResult | Unit]:
    """A line's unit, and what it says of it. Raises `ValueError` for what is no line of a run."""
    if not isinstance(line, dict) or not isinstance(line.get("unit"), str):
        raise ValueError("no object with the name of a unit")
    if "done" in line:
        return line["unit"], Unit.model_validate(line)
    return line["unit"], ProbeResult.model_validate({name: one for name, one in line.items() if name != "unit"})


def _place(unit: str) -> tuple[int, str]:
    """Where a unit stands in a file that nothing has happened to: `base`, edits by number, each before its test."""
    kind, _, number = unit.partition("-")
    last = number.rpartition("-")[2]
    return (int(last) if last.isdecimal() else -1, "z" if kind == "checkpoint" else kind)


class _Run(BaseModel):
    """The content of `run.json`."""

    format_version: int
    specification: Specification
    status: str
    error: str | None


def read_run(folder: Path) -> tuple[Specification, str, str | None]:
    """Specification, status and error from a run's folder. Raises `OutputError` for an invalid one."""
    record = RUN_FOLDER.record(folder / RUN, _Run, known_format=FORMAT_VERSION, what="run")
    return record.specification, record.status, record.error


def write_last_status(journal: Journal, specification: Specification, status: str, error: str) -> None:
    """Writes a final status while another error is under way; a disk that refuses must not hide that one."""
    with contextlib.suppress(PalimpsestError, OSError):
        journal.write_status(specification, status, error=error)


def _text(unit: Unit, results: list[ProbeResult]) -> str:
    """A unit's lines."""
    lines = [{"unit": unit.unit, **result.model_dump(mode="json")} for result in results]
    return "".join(f"{to_json(line)}\n" for line in (*lines, unit.model_dump(mode="json")))


def _refused(path: Path, error: OSError) -> OutputError:
    return OutputError(
        "Writing failed; what was finished before is kept.",
        expected="room and permission to write",
        found=error.strerror or str(error),
        where=str(path),
        remedy="free some space, then run it again with resume",
    )
