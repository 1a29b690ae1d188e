"""A model that knows a data set's true facts: the first step of F-Learning's experiments (arXiv:2311.08011, section 5).

Whether an edit works can only be seen on a model that knows what is edited. No small model knows CounterFact's or
ZsRE's facts by itself, so one is trained until it does, and what it then knows is the ceiling of every table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from palimpsest.files import new_folder, require_absent
from palimpsest.loading import load
from palimpsest.requests import EditRequest
from palimpsest.stopwatch import Progress
from palimpsest.teaching.ceiling import ceiling
from palimpsest.teaching.decoder import DecoderRecipe
from palimpsest.teaching.fact_card import write_fact_card
from palimpsest.teaching.facts import lessons
from palimpsest.teaching.recipe import TrainingRecipe
from palimpsest.teaching.results import FactTraining
from palimpsest.teaching.training import fit, save


def fact_recipe(num_facts: int) -> DecoderRecipe:
    """A decoder for this many facts of a published data set; its rows have room for questions and prefixes."""
    width = next(width for width, limit in ((128, 1500), (192, 8000), (256, float("inf"))) if num_facts <= limit)
    return DecoderRecipe(
        width=width,
        layers=4,
        vocabulary=min(10_000, 1000 + 100 * round(num_facts / 180)),
        epochs=10,
        row_length=32,
        matrix_rate=8e-3,
        weight_decay=0.0,
    )


def train_on_facts(
    out: str | Path,
    requests: Sequence[EditRequest],
    *,
    seed: int = 0,
    progress: bool | Progress = True,
    recipe: TrainingRecipe | None = None,
    phrasings: int = 4,
    dtype: str = "float16",
    sources: Sequence[str] = (),
) -> FactTraining:
    """Train a decoder on the true facts of a data set and write it to `out` as an ordinary Hugging Face folder.

    The folder, with card.md and card.json, appears complete or not at all.

    Arguments:
        out: a folder that does not exist yet.
        requests: the records; their old answers are what is true.
        seed: of the phrasings that are read, the initial weights and the order of the sentences.
        progress: True for a bar on stderr, or a function called as `(stage, done, total)`.
        recipe: the default depends on the number of facts.
        phrasings: in how many a fact is read, where the data set has that many.
        dtype: what the weights are stored in: "float32", "float16" or "bfloat16".
        sources: where the requests are from, for the card.

    Raises:
        ConfigError: an option is out of range.
        DataError: too few requests have a true answer.
        OutputError: `out` exists already, or cannot be written to.
    """
    target = Path(out)
    require_absent(target)
    taught = lessons(requests, seed=seed, phrasings=phrasings)
    recipe = recipe or fact_recipe(taught.num_facts)
    with new_folder(target) as folder:
        model, tokenizer, result = fit(taught.sentences, recipe, seed=seed, progress=progress)
        save(model, tokenizer, folder, dtype)
        known = ceiling(load(str(folder)), taught.questions, progress=progress)
        reasons = dict(Counter(one.reason for one in taught.left_out))
        found = FactTraining(result, taught.num_facts, len(taught.sentences), reasons, known)
        write_fact_card(folder, found, sources)
    return found
