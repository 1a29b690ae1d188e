"""What of a run is finished, in memory and, where a folder is given, on disk at every moment.

A folder holds `run.json` (the specification, written first), `base.json` (the base model's answers) and
`records.jsonl`: the probe lines of one unit of work are appended in one write, closed by the unit's own line
with `"done": true`, and forced to the disk. What follows the last such line was never finished and is
dropped.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from palimpsest.errors import OutputError, PalimpsestError, later_version
from palimpsest.evaluation.answers import BaseAnswers
from palimpsest.evaluation.records import FailedEdit, ProbeResult, Specification
from palimpsest.patches.base import Patch
from palimpsest.patches.storage import load_patch
from palimpsest.provenance import now, require_absent, write_text

FORMAT_VERSION = 1
STATE = "state.safetensors"
RUN, RECORDS, BASE = "run.json", "records.jsonl", "base.json"


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
            journal.take_over()
            return journal
        elif not folder.is_dir() or any(not file.name.startswith(".") for file in folder.iterdir()):
            raise OutputError(
                "The output is not the folder of a run.",
                expected=f"a folder with {RUN} in it, or an empty one",
                found="other files" if folder.is_dir() else "a file",
                where=str(folder),
                remedy="choose another folder",
            )
        journal.write_status(specification, "running")
        return journal

    def read(self) -> int:
        """Reads the finished units; returns how many bytes they take. Changes nothing on the disk."""
        if self.folder is None or not (self.folder / RECORDS).exists():
            return 0
        return self._parse((self.folder / RECORDS).read_bytes())

    def take_over(self) -> None:
        """Reads the finished units and drops an unfinished tail, so that new ones can be appended."""
        finished = self.read()
        if self.folder is not None and (self.folder / RECORDS).exists():
            os.truncate(self.folder / RECORDS, finished)

    def add(self, unit: Unit, results: list[ProbeResult]) -> None:
        """Takes over a finished unit: on disk when this returns. Raises `OutputError` when the disk refuses."""
        if self.folder is not None:
            lines = [{"unit": unit.unit, **result.model_dump(mode="json")} for result in results]
            text = "".join(_line(line) for line in (*lines, unit.model_dump(mode="json")))
            try:
                with (self.folder / RECORDS).open("ab") as stream:
                    stream.write(text.encode("utf-8"))
                    stream.flush()
                    os.fsync(stream.fileno())
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
        write_text(self.folder / RUN, json.dumps(record, indent=2, ensure_ascii=False) + "\n")

    # The base model's answers

    def keep_base(self, base: BaseAnswers) -> None:
        """Writes what the base model said, so that a resumed run need not ask again."""
        if self.folder is not None:
            write_text(self.folder / BASE, json.dumps(base.to_dict(), ensure_ascii=False))

    def recall_base(self, base: BaseAnswers) -> None:
        """Gives back what `keep_base` wrote, if anything."""
        if self.folder is not None and (self.folder / BASE).exists():
            base.absorb(json.loads((self.folder / BASE).read_text(encoding="utf-8")))

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

    def _parse(self, content: bytes) -> int:
        """Fills in the units; returns how many bytes are finished."""
        finished, position = 0, 0
        waiting: list[ProbeResult] = []
        for raw in content.splitlines(keepends=True):
            position += len(raw)
            try:
                line = json.loads(raw) if raw.endswith(b"\n") else None
                if line is None:
                    break
                if line.get("done"):
                    unit = Unit.model_validate(line)
                    self.units[unit.unit], self.results[unit.unit] = unit, waiting
                    waiting, finished = [], position
                else:
                    line.pop("unit")
                    waiting.append(ProbeResult.model_validate(line))
            except (ValueError, KeyError, AttributeError, ValidationError):
                break
        return finished


def read_run(folder: Path) -> tuple[Specification, str, str | None]:
    """Specification, status and error from a run's folder. Raises `OutputError` for one that is none."""
    try:
        record = json.loads((folder / RUN).read_text(encoding="utf-8"))
        if record["format_version"] > FORMAT_VERSION:
            raise later_version(OutputError, "run", record["format_version"], FORMAT_VERSION, where=str(folder / RUN))
        return Specification.model_validate(record["specification"]), record["status"], record["error"]
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise OutputError(
            "The folder is not that of a run.",
            expected=f"a folder with {RUN}, as an evaluation writes it",
            found=str(error).split("\n")[0],
            where=str(folder),
        ) from error


def write_last_status(journal: Journal, specification: Specification, status: str, error: str) -> None:
    """Writes a final status while another error is under way; a disk that refuses must not hide that one."""
    with contextlib.suppress(PalimpsestError, OSError):
        journal.write_status(specification, status, error=error)


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def _refused(path: Path, error: OSError) -> OutputError:
    return OutputError(
        "Writing failed; what was finished before is kept.",
        expected="room and permission to write",
        found=error.strerror or str(error),
        where=str(path),
        remedy="free some space, then run it again with resume",
    )
