"""Progress: a bar of our own on stderr, or someone else's, or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from palimpsest.stopwatch import Progress


@contextmanager
def bar(progress: bool | Progress, what: str, total: float) -> Iterator[Callable[[float, str], None]]:
    """A function (done so far, note) that shows how far along `what` is.

    Arguments:
        progress: True for a bar on stderr, False for silence, or a function called as `(stage, done, total)`.
    """
    if callable(progress):
        report = progress

        def forward(done: float, note: str) -> None:
            report(f"{what} {note}".strip(), int(done), int(total))

        yield forward
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[note]}"))
    console = Console(stderr=True)
    with Bar(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not progress) as shown:
        task = shown.add_task(what, total=total, note="")
        yield lambda done, note: shown.update(task, completed=done, note=note)
