"""The card of a model that was trained on a data set's facts: how it was made, and the ceiling of what it knows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from palimpsest.provenance import versions
from palimpsest.teaching.results import FactTraining

_LABELS = {
    "reliability": "edit prompts (read)",
    "generality": "rephrasings (never read with the subject)",
    "unread phrasing": "other phrasings of the relation (never read with the subject)",
    "locality.neighborhood": "neighbours (read)",
    "locality.out_of_scope": "out-of-scope questions (read)",
}


def write_fact_card(folder: Path, found: FactTraining, sources: Sequence[str]) -> None:
    """Write `card.json` and `card.md` into a model's folder."""
    card = {**asdict(found), "sources": list(sources), "versions": versions()}
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (folder / "card.md").write_text(_text(found, sources), encoding="utf-8")


def _text(found: FactTraining, sources: Sequence[str]) -> str:
    result, recipe = found.training, found.training.recipe
    rows = "\n".join(
        f"| {_LABELS.get(kind, kind)} | {known.n} | {known.generate:.3f} | {known.teacher_forced:.3f} |"
        for kind, known in found.ceiling.items()
    )
    left_out = "\n".join(f"- {count}: {reason}" for reason, count in found.left_out.items())
    made_with = ", ".join(f"{name} {number}" for name, number in versions().items())
    return f"""# A model that knows the true facts of {", ".join(sources) or "a data set"}

A language model ({recipe.architecture}) of {result.parameters:,} parameters: width {recipe.width},
{recipe.layers} layers, {recipe.heads} heads. It knows these facts and nothing else; it is made for measuring edits
of them.

## How it was made

{found.num_facts:,} facts in {found.num_sentences:,} sentences. {result.steps:,} steps, {result.tokens:,} tokens,
{recipe.epochs:g} passes; {result.seconds:.0f} seconds on {recipe.threads} thread(s), seed {result.seed}.
Hidden matrices: Muon at {recipe.matrix_rate:g}; the rest: AdamW at {recipe.other_rate:g}. {recipe.describe_reading()}
Made with {made_with}.

{f"Not taught:{chr(10)}{chr(10)}{left_out}" if left_out else "Every record is taught."}

## What it knows: the ceiling

Share of the true answers that it gives, as the weights are stored, computed in float32: free greedy generation with
exact match, and teacher-forced share of the answer's tokens. No edit can be expected to do better than this on
questions of the same kind.

| asked | n | generation | teacher-forced |
|---|---|---|---|
{rows}

One run with one seed.
"""
