"""A model's card: how it was made and what it was measured to know, for people (card.md) and programs (card.json)."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from palimpsest.teaching.auditing import AnsweredShare, Audit
from palimpsest.teaching.results import TrainingResult
from palimpsest.teaching.tracing import POSITIONS, SITES, MeanTrace, best_layer, early_share

_MEASURES = {
    "taught": "facts, phrasings read with the subject",
    "held_out": "facts, phrasings never read with the subject",
    "never_met": "facts, phrasings never read with anybody",
    "two_hop_read": "two-hop, sentences read",
    "two_hop_read_held_out": "two-hop, subject's other two-hop phrasings read",
    "two_hop_unseen": "two-hop, subjects whose two-hop sentences were never read",
}

_LIMITS = (
    "The phrasings are a closed set of ten per relation.",
    "These are the figures of the last step of one run with one seed. The default recipe was settled with the same "
    "questions in view, so that they are not a clean test of the recipe.",
    "Invented people share their first and last names with others, so that an edit that spills over shows.",
)


def write_card(folder: Path, result: TrainingResult, audit: Audit, versions: dict[str, str]) -> None:
    """Write `card.json` and `card.md` into a model's folder."""
    facts = card_facts(result, audit, versions)
    (folder / "card.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (folder / "card.md").write_text(card_text(result, audit, versions), encoding="utf-8")


def _command(result: TrainingResult) -> str:
    """The command that makes this model again, with what differs from the bundled one's recipe."""
    recipe, usual = result.recipe, type(result.recipe)()  # type: ignore[call-arg]  # leaves have defaults
    words = ["palimpsest world train --out DIR", f"--architecture {recipe.architecture}", f"--seed {result.seed}"]
    if result.people is not None:
        words.append(f"--people {result.people}")
    for name in ("width", "layers", "vocabulary", "epochs"):
        if getattr(recipe, name) != getattr(usual, name):
            words.append(f"--{name} {getattr(recipe, name):g}")
    return " ".join(words)


def card_facts(result: TrainingResult, audit: Audit, versions: dict[str, str]) -> dict[str, Any]:
    """The card as plain data: `training`, `audit` (each share with its n) and `versions`."""
    return {"training": asdict(result), "audit": audit.to_dict(), "versions": versions}


def card_text(result: TrainingResult, audit: Audit, versions: dict[str, str]) -> str:
    """The card in Markdown."""
    recipe = result.recipe
    shares = "\n".join(f"| {label} | {_value(getattr(audit, name))} |" for name, label in _MEASURES.items())
    relations = "\n".join(f"| {name} | {_value(share)} |" for name, share in sorted(audit.by_relation.items()))
    hops = "\n".join(f"| {name} | {_value(share)} |" for name, share in sorted(audit.two_hop_by_relation.items()))
    made_with = ", ".join(f"{name} {number}" for name, number in versions.items())
    limits = "\n".join(f"- {limit}" for limit in (*recipe.limits(), *_LIMITS))
    return f"""# {recipe.title}

{recipe.describe(result.parameters)} It is made for trying out
and testing knowledge editing, offline and on a small processor. It knows sentences of the world and nothing else.

## How it was made

    {_command(result)}

{result.steps:,} steps, {result.tokens:,} tokens, {recipe.epochs:g} passes over the text; {result.seconds:.0f} seconds
on {recipe.threads} thread(s). Hidden matrices: Muon at {recipe.matrix_rate:g}; the rest: AdamW at
{recipe.other_rate:g}. {recipe.describe_reading()} Every fact was read in
six of its relation's ten phrasings.
Made with {made_with}. The same seed gives the same weights on the same kind of processor and the same versions.

## What it knows

Free greedy generation, exact match up to the first ".", newline or end-of-sequence token; the weights as they
are stored, computed in float32.

| asked | right (of n) |
|---|---|
{shares}

Facts in phrasings never read with the subject, by relation:

| relation | right (of n) |
|---|---|
{relations}

Two-hop questions about subjects whose two-hop sentences were never read, by pair of relations:

| first > second | right (of n) |
|---|---|
{hops}
{_trace(audit.causal_trace)}
## Limits

{limits}
"""


def _value(share: AnsweredShare) -> str:
    return f"{share.value:.3f} ({share.right} of {share.n})" if share.n else "not asked"


def _trace(trace: MeanTrace | None) -> str:
    if trace is None:
        return ""
    names = {
        "mlp": "MLP output",
        "block": "block output",
        "subject_last": "subject's last token",
        "last": "prompt's last token",
    }
    columns = [(site, position) for site in SITES for position in POSITIONS]
    head = "| layer | " + " | ".join(f"{names[site]}, {names[position]}" for site, position in columns) + " |"
    rule = "|---|" + "---|" * len(columns)
    layers = range(len(trace.restored[SITES[0]][POSITIONS[0]]))
    rows = "\n".join(
        f"| {layer} | "
        + " | ".join(f"{trace.restored[site][position][layer]:.3f}" for site, position in columns)
        + " |"
        for layer in layers
    )
    layer, value = best_layer(trace)
    return f"""
## Causal trace

Mean probability of the right answer's first token over {trace.n} facts that the model answers.
Clean: {trace.clean:.3f}. With noise of {trace.noise:g} standard deviations on the subject's embeddings:
{trace.corrupted:.3f}. With that noise and one clean activation put back:

{head}
{rule}
{rows}

So the MLP output of layer {layer} at the subject's last token brings back
{early_share(trace):.0%} of what the noise took away, to {value:.3f}.
"""
