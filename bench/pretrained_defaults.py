"""What methods do to pretrained models without any option, on facts that each model knows.

    python bench/pretrained_defaults.py --models pretrained --facts COUNTERFACT       goes on where it was stopped
    python bench/pretrained_defaults.py ... --methods memit,alphaedit --batch 100     all facts at once

`--models` is what `make pretrained` makes, COUNTERFACT a folder with the files that `bench/known_facts.py` names.
Defaults were chosen on records of the split `train` (`--split train`, with `--options JSON` to try others); what is
reported is of the split `edit`. Half of the prompts begin with their subject. What counts as an answer is
`palimpsest.answers`; a neighbour is kept when its first words are what they were. The unedited model's true answers
under the same prompts stand beside the figures. Results: `bench/results/pretrained_defaults.json`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import palimpsest as ps
from common import Results, one_thread
from known_facts import Fact, continuations, known_facts
from palimpsest.answers import gives_new, gives_old, is_exact, same_beginning
from palimpsest.wording.degenerate import is_degenerate

METHODS = (
    "ft", "ft-l", "locft", "lora", "rome", "r-rome", "memit", "emmet", "pmet", "alphaedit", "grace", "wise",
    "t-patcher", "f-learning-ft", "f-learning-lora", "f-learning-lora-ft",
)  # fmt: skip
NEW_TOKENS, NEAR_TOKENS = 24, 8


def facts_of(model: ps.EditableModel, folder: Path, split: str, count: int) -> list[Fact]:
    """Known facts in the order of the file; every other prompt begins with its subject, as far as there are such."""
    leading = known_facts(model, folder, split, count // 2, is_first_token=True)
    others = known_facts(model, folder, split, count - len(leading))
    pairs = [fact for pair in zip(others, leading, strict=False) for fact in pair]
    return pairs + [fact for fact in (*others, *leading) if fact not in pairs]


def probed(model: ps.EditableModel, facts: Sequence[Fact]) -> dict[str, str]:
    """What a model writes after every prompt of some facts."""
    near = continuations(
        model, [prompt for fact in facts for prompt in (*fact.paraphrases, *fact.neighbours)], NEAR_TOKENS
    )
    return near | continuations(model, [fact.prompt for fact in facts], NEW_TOKENS)


def counted(facts: Sequence[Fact], before: dict[str, str], after: dict[str, str]) -> dict[str, list[int]]:
    """How many of how many, for each score."""
    says, exact, babbles, again, known_again, kept, leaks, right = ([] for _ in range(8))
    for fact in facts:
        request = fact.request()
        own = after[fact.prompt]
        says.append(gives_new(request, own))
        exact.append(is_exact(own, fact.new))
        babbles.append(is_degenerate(own, [fact.new]) and not is_degenerate(before[fact.prompt], [fact.old]))
        for prompt in fact.paraphrases:
            asked = replace(request, prompt=prompt, subject=None)
            again.append(gives_new(asked, after[prompt]))
            known_again.append(gives_old(asked, before[prompt]))
        for prompt in fact.neighbours:
            asked = replace(request, prompt=prompt, subject=None)
            kept.append(same_beginning(after[prompt], before[prompt]))
            leaks.append(gives_new(asked, after[prompt]) and not gives_new(asked, before[prompt]))
            if gives_old(asked, before[prompt]):
                right.append(gives_old(asked, after[prompt]))
    scores = {
        "says_it": says, "exact": exact, "degenerate": babbles, "paraphrases": again,
        "paraphrases_ceiling": known_again, "neighbours_kept": kept, "leaks": leaks, "right_neighbours_kept": right,
    }  # fmt: skip
    return {name: [sum(found), len(found)] for name, found in scores.items()}


def edited(
    model: ps.EditableModel, facts: Sequence[Fact], before: dict[str, str], method: ps.Method[Any]
) -> dict[str, Any]:
    """One edit of one fact or of many, and what became of it: counts, seconds of the processor, bytes."""
    start = time.process_time()
    outcome = method.edit(model, [fact.request() for fact in facts])
    seconds = time.process_time() - start
    with model.patched(outcome.patch):
        after = probed(model, facts)
    return {
        **counted(facts, before, after),
        "seconds": round(seconds, 2),
        "patch_bytes": outcome.patch.num_bytes,
        "wrote": after[facts[0].prompt][:80],
        "notes": list(outcome.diagnostics.notes),
    }


def main() -> None:
    """Runs every method on every model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("pretrained"))
    parser.add_argument("--facts", type=Path, required=True)
    parser.add_argument("--only", default="smollm2,gemma3,qwen2.5", help="folders of models, with commas between them")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--split", choices=("train", "edit"), default="edit")
    parser.add_argument("--num-facts", type=int, default=20)
    parser.add_argument("--batch", type=int, default=1, help="facts per edit")
    parser.add_argument("--options", type=json.loads, default={}, help="options in place of the defaults, as JSON")
    chosen = parser.parse_args()
    one_thread()
    results = Results("pretrained_defaults", {"tokens": [NEW_TOKENS, NEAR_TOKENS]})
    for name in chosen.only.split(","):
        model = ps.load(str(chosen.models / name), dtype="float32")
        facts = facts_of(model, chosen.facts, chosen.split, chosen.num_facts)
        before = probed(model, facts)
        groups = [facts[start : start + chosen.batch] for start in range(0, len(facts), chosen.batch)]
        for method in chosen.methods.split(","):
            editor = ps.method(method, **chosen.options)
            for group in groups:
                labels = {"model": name, "method": method, "split": chosen.split, "options": chosen.options}
                labels |= {"edit": [fact.id for fact in group]}
                results.get(
                    labels,
                    lambda labels=labels, group=group, editor=editor: {
                        **labels,
                        **edited(model, group, before, editor),  # noqa: B023 - called at once
                    },
                )


if __name__ == "__main__":
    main()
