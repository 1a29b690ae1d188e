"""Records sent to experiment trackers (TensorBoard, Weights & Biases, MLflow, ...), by way of accelerate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from palimpsest.evaluation import RunRecord

PROJECT = "palimpsest"
DIRECTORY = Path("tracking")
"""Where trackers write that write files."""


def require_trackers(names: Sequence[str]) -> None:
    """Raises `ConfigError` for a tracker that accelerate does not know, or whose package is not installed."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    installed = {str(one) for one in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise unknown_name("tracker", name, sorted(LOGGER_TYPE_TO_CLASS))
        if name not in installed:
            raise ConfigError(
                f"The tracker {name} is not installed.",
                expected=f"its package, or one of those that are there: {', '.join(sorted(installed)) or 'none'}",
                found=f"no package for {name}",
                where="option --log-with",
                remedy=f"pip install {name.replace('_', '-')}, or leave --log-with out: `palimpsest report RUN "
                f"--log-with {name}` sends the record of a run later",
            )


def log_records(records: Sequence[RunRecord], trackers: Sequence[Any], directory: Path = DIRECTORY) -> None:
    """Sends records to trackers, each as a run of its own with its specification as the configuration.

    Arguments:
        records: of runs.
        trackers: names, or accelerate's own `GeneralTracker` objects.
        directory: for those that write files; made where it is missing.
    """
    from accelerate import Accelerator

    require_trackers([one for one in trackers if isinstance(one, str)])
    for record in records:
        # The kinds of values that every tracker takes; lists as text.
        config = {
            name: one if isinstance(one, (str, int, float, bool)) else str(one)
            for name, one in record.specification.by_path().items()
            if one is not None
        }
        accelerator = Accelerator(log_with=list(trackers), project_dir=str(directory))
        accelerator.init_trackers(_run_name(record), config=config)
        for step, values in steps(record):
            accelerator.log(values, step=step)
        accelerator.end_training()


def steps(record: RunRecord) -> Iterator[tuple[int, dict[str, float]]]:
    """Yields the logged values of a record: the number of edits, and numbers by names such as `generate/reliability`.

    A sequence has a step for each of its checkpoints. The last step has all numbers of the run.
    """
    for point in record.checkpoints[:-1]:
        more = {"perplexity": point.perplexity, "patch_norm": point.patch_norm}
        yield point.num_edits, {**_shares(point.scores), **_numbers(more)}
    seconds = {f"seconds/{stage}": value for stage, value in record.seconds.items()}
    cost = {
        "seconds_per_edit": record.seconds_per_edit,
        "peak_memory_bytes": record.peak_memory_bytes,
        "patch_bytes": record.patch_bytes,
    }
    norm = record.checkpoints[-1].patch_norm if record.checkpoints else None
    measures = {f"measures/{name}/{when}": one for name, both in record.measures.items() for when, one in both.items()}
    yield (
        record.specification.num_edits,
        {
            **_shares(record.scores),
            **_shares(record.immediate, "immediate/"),
            **_shares(record.ceilings, "ceiling/"),
            **_numbers({f"perplexity/{name}": value for name, value in record.perplexity.items()}),
            **_numbers({**seconds, **cost, "patch_norm": norm, **measures}),
        },
    )


def _run_name(record: RunRecord) -> str:
    spec = record.specification
    words = (PROJECT, spec.method, Path(spec.model).name, spec.dataset, spec.protocol, f"seed-{spec.seed}")
    return "-".join("".join(char if char.isalnum() or char in "-_." else "-" for char in word) for word in words)


def _shares(scores: Mapping[str, Mapping[str, Any]], prefix: str = "") -> dict[str, float]:
    return _numbers(
        {
            f"{prefix}{scoring}/{metric}": one.mean
            for scoring, by_metric in scores.items()
            for metric, one in by_metric.items()
        }
    )


def _numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if value is not None}
