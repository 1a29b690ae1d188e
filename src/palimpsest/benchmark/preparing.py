"""A model that is taught the old answers first, so that there is something to forget (F-Learning, section 5.1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import TYPE_CHECKING, Any

from palimpsest.benchmark.entries import Preparation
from palimpsest.benchmark.known import gives_old_answers
from palimpsest.files import require_writable, taking_turns
from palimpsest.patches import load_patch

if TYPE_CHECKING:
    from palimpsest.models import EditableModel
    from palimpsest.patches import Patch
    from palimpsest.requests import EditRequest


@contextmanager
def prepared(
    model: EditableModel, requests: Sequence[EditRequest], preparation: Preparation, *, seed: int, folder: Path
) -> Iterator[dict[str, Any]]:
    """Inside the block the model has been taught the edits' old answers; afterwards it is what it was.

    Arguments:
        requests: the edits; each needs an old answer.
        folder: where what was taught is kept as a patch, for whoever prepares the same model for the same facts.

    Yields what the preparation came to: the share of old answers that the model gives before and after, and seconds.
    Raises `DataError` for an edit without an old answer.
    """
    start = perf_counter()
    old = [request.reversed_to_old() for request in requests]
    before = gives_old_answers(model, requests)
    require_writable(folder)
    with taking_turns(folder):
        patch = load_patch(folder) if folder.exists() else _taught(model, old, preparation, seed, folder)
    with model.patched(patch):
        account = {
            "facts": len(requests),
            **preparation.method_options(),
            "known_before": fmean(before),
            "known_after": fmean(gives_old_answers(model, requests)),
        }
        yield {**account, "seconds": perf_counter() - start}


def _taught(
    model: EditableModel, old: Sequence[EditRequest], preparation: Preparation, seed: int, folder: Path
) -> Patch:
    from palimpsest.methods import method

    patch = method("ft", preset="none", seed=seed, **preparation.method_options()).edit(model, old).patch
    # What is measured on it is told from what is measured on a model that was taught other facts.
    patch.manifest = patch.manifest.model_copy(update={"label": f"old answers taught ({folder.name})"})
    patch.save(folder)
    return patch


def in_words(account: dict[str, Any]) -> str:
    """An account of `prepared` as a sentence."""
    return (
        f"The model was taught the old answers of its {account['facts']} facts first, {account['epochs']} passes at a "
        f"learning rate of {account['learning_rate']:g}: it gave {100 * account['known_before']:.0f}% of them before, "
        f"{100 * account['known_after']:.0f}% after."
    )
