"""Workers on other machines, through Ray. A unit's run travels back as files; nothing has to be mounted anywhere."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from palimpsest.benchmark.folder import Finished, ResultsFolder
from palimpsest.benchmark.units import WorkUnit
from palimpsest.benchmark.workers import TRIES, OnFinished
from palimpsest.errors import ConfigError
from palimpsest.files import new_folder


def run_on_ray(
    folder: ResultsFolder, units: Sequence[WorkUnit], *, address: str, workers: int | None, on_finished: OnFinished
) -> None:
    """Does all units on a Ray cluster.

    Arguments:
        address: of a running cluster (`auto`, `ray://host:10001`), or `local` for one that lives as long as this call.
        workers: how many units at a time; as many as the cluster has processors for when left out.

    A unit whose worker dies is tried again on another one, from its beginning. Models and data files that are no hub
    ids must be found at the same paths on every machine. Raises `ConfigError` when Ray or the cluster is not there.
    """
    ray = _connected(address, workers)
    try:
        task = ray.remote(num_cpus=1, max_retries=TRIES - 1)(_do_elsewhere)
        waiting = {task.remote(unit): unit for unit in units}
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1)
            for reference in ready:
                unit = waiting.pop(reference)
                try:
                    finished, files = ray.get(reference)
                except ray.exceptions.RayError as error:
                    first = str(error).strip().splitlines()[0]
                    finished, files = Finished("failed", f"its worker died {TRIES} times: {first}"), {}
                if files:
                    _unpack(files, folder.unit_folder(unit))
                on_finished(unit, finished)
    finally:
        ray.shutdown()


def _connected(address: str, workers: int | None) -> Any:
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "Running on several machines needs another package.",
            expected="the package `ray`",
            found="it is not installed",
            remedy="pip install 'palimpsest-lm[ray]', or leave --ray out and choose --workers",
        ) from error
    try:
        if address == "local":
            ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
        else:
            ray.init(address=address, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            "The Ray cluster cannot be reached.",
            expected="a cluster at that address: `ray start --head` makes one",
            found=str(error).strip().splitlines()[0],
            where=f"--ray {address}",
        ) from error
    return ray


def _do_elsewhere(unit: WorkUnit) -> tuple[Finished, dict[str, bytes]]:
    """Runs a unit on a Ray worker, in its own folder; returns its outcome and the folder's files."""
    from palimpsest.benchmark.work import Desk

    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        finished = Desk(Path(scratch)).do(unit, run)
        files = {str(file.relative_to(run)): file.read_bytes() for file in run.rglob("*") if file.is_file()}
    return finished, files


def _unpack(files: Mapping[str, bytes], folder: Path) -> None:
    with new_folder(folder, replacing=sorted({name.split("/")[0] for name in files})) as draft:
        for name, content in files.items():
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            (draft / name).write_bytes(content)
