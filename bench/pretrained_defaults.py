"""What methods do to pretrained models without any option: single edits of facts that each model knows.

    python bench/pretrained_defaults.py --models pretrained --data DIR          goes on where it was stopped

`pretrained` is what `make pretrained` makes, `DIR` holds the published `counterfact/` files. A fact is known when every
token of its true answer is the most probable one. Defaults were chosen on records of the split `train`
(`--split train`, with `--options JSON` to try others); what is reported is of the split `edit`. An edit counts when
every token of the new answer is the most probable one; a neighbour is kept when its first three greedy tokens are what
they were; a text is degenerate when the answer would be begun again. Results: `bench/results/pretrained_defaults.json`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import palimpsest as ps
from common import Results, one_thread
from palimpsest.datasets import load_edits
from palimpsest.models.tokens import Encoded

METHODS = ("ft", "ft-l", "locft", "lora", "grace", "t-patcher", "wise")
CHUNK = 32
NUM_TOKENS, NUM_NEIGHBOURS, NUM_PARAPHRASES = 3, 4, 2
FULL, FLAT = "counterfact/counterfact_full_500.json", "counterfact/counterfact_all_21919.jsonl"


def known_facts(model: Any, data: Path, split: str, count: int) -> list[ps.EditRequest]:
    """The first records of a split, of ROME's layout, whose true answer the model gives."""
    lines = (json.loads(line) for line in (data / FLAT).read_text(encoding="utf-8").splitlines())
    own = {str(record["case_id"]) for record in lines if record["x_split"] == split}
    edits = [one for one in load_edits(data / FULL).requests if one.id in own]
    known: list[ps.EditRequest] = []
    for first in range(0, len(edits), CHUNK):
        some = edits[first : first + CHUNK]
        scores = model.score([one.prompt for one in some], [one.target_old or "" for one in some])
        known += [one for one, score in zip(some, scores, strict=True) if all(score.matches)]
        if len(known) >= count:
            break
    return known[:count]


def probes(request: ps.EditRequest, kind: str, count: int) -> list[str]:
    """The first prompts of a kind."""
    return [probe.prompt for probe in request.probes if probe.kind == kind][:count]


@torch.no_grad()
def greedy(model: Any, prompts: Sequence[str]) -> list[Encoded]:
    """Prompts with the tokens that the model goes on with."""
    rows = [Encoded(model.encode(prompt).prompt_ids) for prompt in prompts]
    for _ in range(NUM_TOKENS):
        found = places(model, [Encoded(row.prompt_ids, (*row.target_ids, 0)) for row in rows])
        rows = [Encoded(row.prompt_ids, (*row.target_ids, ids[-1])) for row, ids in zip(rows, found, strict=True)]
    return rows


@torch.no_grad()
def places(model: Any, rows: Sequence[Encoded]) -> list[tuple[int, ...]]:
    """The most probable token in each answer place of each row."""
    batch = model.batch(rows)
    at, columns, _ = model.answer_places(rows, batch)
    ids = model.logits_at(batch, at, columns).argmax(-1).tolist()
    return [tuple(one for one, row in zip(ids, at.tolist(), strict=True) if row == index) for index in range(len(rows))]


def edited(model: Any, request: ps.EditRequest, method: str, options: dict[str, Any]) -> dict[str, Any]:
    """One edit and what became of it: counts, seconds of the processor, bytes."""
    near = greedy(model, probes(request, "locality.neighborhood", NUM_NEIGHBOURS))
    own = model.encode(request.prompt, request.target_new)
    asked = [model.encode(prompt, request.target_new) for prompt in probes(request, "generality", NUM_PARAPHRASES)]
    start = time.process_time()
    outcome = ps.method(method, **options).edit(model, [request])
    seconds = time.process_time() - start
    with model.patched(outcome.patch):
        again = Encoded(own.prompt_ids, (*own.target_ids, own.target_ids[0]))
        first, *found = places(model, [again, *asked, *near])
    says = first[:-1] == own.target_ids
    return {
        "holds": int(says),
        "degenerate": int(says and first[-1] == own.target_ids[0]),
        "paraphrases": [sum(ids == row.target_ids for ids, row in zip(found, asked, strict=False)), len(asked)],
        "neighbours": [
            sum(ids == row.target_ids for ids, row in zip(found[len(asked) :], near, strict=True)),
            len(near),
        ],
        "leaks": sum(
            ids[0] == own.target_ids[0] != row.target_ids[0] for ids, row in zip(found[len(asked) :], near, strict=True)
        ),
        "seconds": seconds,
        "patch_bytes": outcome.patch.num_bytes,
    }


def main() -> None:
    """Runs every method on every model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("pretrained"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", default="smollm2,gemma3,qwen2.5", help="folders of models, with commas between them")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--split", choices=("train", "edit"), default="edit")
    parser.add_argument("--num-edits", type=int, default=20)
    parser.add_argument("--options", type=json.loads, default={}, help="options in place of the defaults, as JSON")
    chosen = parser.parse_args()
    one_thread()
    settings = {"neighbours": NUM_NEIGHBOURS, "paraphrases": NUM_PARAPHRASES, "tokens": NUM_TOKENS}
    results = Results("pretrained_defaults", settings)
    for name in chosen.only.split(","):
        model = ps.load(str(chosen.models / name), dtype="float32")
        facts = known_facts(model, chosen.data, chosen.split, chosen.num_edits)
        for method in chosen.methods.split(","):
            for request in facts:
                labels = {"model": name, "method": method, "split": chosen.split, "options": chosen.options}
                labels |= {"edit": request.id}
                results.get(
                    labels,
                    lambda labels=labels, one=request, method=method: {
                        **labels,
                        **edited(model, one, method, chosen.options),  # noqa: B023 - called at once
                    },
                )


if __name__ == "__main__":
    main()
