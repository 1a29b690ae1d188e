"""The files of facts that recipes read besides published ones.

    python runs/facts.py real --data DIR --out real      published records that models are taught
    python runs/facts.py split --data DIR --out split    CounterFact's published splits, for pretrained models
    python runs/facts.py larger --out larger             facts of a world of 1,600 people

`real`: DIR holds the published files (`counterfact/`, `zsre/`). Of each data set OUT gets all records that are used,
those that are reported, others for choosing options, and the text that `palimpsest world train` makes of them.
CounterFact: the records of ROME's layout, which have two paraphrases and ten neighbours each, then those of the flat
layout that have a true paraphrase. ZsRE: records of the published evaluation file.

`split`: of CounterFact's 21,919 facts in the flat layout, `edit.json` and `train.json` in ROME's: 4,000 facts of either
split in an order that follows from a seed. Each has two paraphrases, the true one of the file or its relation's other
wordings, and five prompts about other subjects with the same old answer. No prompt is in both files. ROME's own file
has all paraphrases behind a sentence about something else, which is harder.

`larger`: OUT gets the facts of both splits in one file, in an order that follows from a seed, and the text that
`palimpsest world train --people 1600` reads.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import palimpsest as ps
from palimpsest.datasets import load_edits
from palimpsest.files import write_text
from palimpsest.requests import normalise
from palimpsest.teaching.facts import lessons
from palimpsest.world import build, counterfact
from palimpsest.world.text import training_sentences

FILES = {
    "counterfact": ("counterfact/counterfact_full_500.json", "counterfact/counterfact_all_21919.jsonl"),
    "zsre": ("zsre/zsre_3k.json",),
}
NUM_RECORDS = {"counterfact": 1800, "zsre": 3000}
NUM_FOR_CHOOSING = 400
# As in the Makefile.
PHRASINGS = {"counterfact": 3, "zsre": 4}
PEOPLE, SEED = 1600, 0
SPLIT_RECORDS, PARAPHRASES, NEIGHBOURS = 4000, 2, 5


def select(data: Path, name: str) -> list[ps.EditRequest]:
    """The first records of a data set that have a true answer and a rephrasing."""
    found: dict[str, ps.EditRequest] = {}
    for file in FILES[name]:
        for request in load_edits(data / file).requests:
            if request.target_old and any(probe.kind == "generality" for probe in request.probes):
                found.setdefault(request.id, request)
    return list(found.values())[: NUM_RECORDS[name]]


def one_per_prompt(edits: Sequence[ps.EditRequest], but: Iterable[ps.EditRequest] = ()) -> list[ps.EditRequest]:
    """Of each prompt the first edit, without the prompts of others."""
    seen = {normalise(one.prompt) for one in but}
    return [one for one in edits if not ((key := normalise(one.prompt)) in seen or seen.add(key))]  # type: ignore[func-returns-value]


def real(data: Path, out: Path) -> None:
    """Writes the files of both published data sets."""
    for name in FILES:
        edits = select(data, name)
        reported = one_per_prompt(edits[:-NUM_FOR_CHOOSING])
        _write(out / f"{name}.jsonl", edits)
        _write(out / f"{name}-reported.jsonl", reported)
        _write(out / f"{name}-choosing.jsonl", one_per_prompt(edits[-NUM_FOR_CHOOSING:], reported))
        taught = lessons(load_edits(out / f"{name}.jsonl").requests, phrasings=PHRASINGS[name])
        write_text(out / f"{name}.txt", "".join(f"{sentence.text}\n" for sentence in taught.sentences))


def larger(out: Path) -> None:
    """Writes the files of the larger world."""
    knowledge = build(SEED, people=PEOPLE)
    edits: list[ps.EditRequest] = []
    for split in ("test", "train"):
        file = out / f"counterfact-{split}.json"
        write_text(file, json.dumps(counterfact(knowledge, split=split)))
        edits += [replace(one, id=f"{split}-{one.id}") for one in load_edits(file).requests]
    _write(out / "larger-world-facts.jsonl", ps.Dataset("larger world", tuple(edits)).sample(len(edits), SEED).requests)
    write_text(out / "larger-world.txt", "".join(f"{one.text}\n" for one in training_sentences(knowledge)))


def split(data: Path, out: Path) -> None:
    """Writes CounterFact's splits for editing and for training in ROME's layout."""
    folder = data / "counterfact"
    facts, pool = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("counterfact_all_21919.jsonl", "counterfact_neighborhood_pool.jsonl")
    )
    neighbours = {(one["relation_id"], one["object"]): one["prompts"] for one in pool}
    wordings: dict[str, list[str]] = {}
    for fact in facts:
        wordings.setdefault(fact["x_relation_id"], []).append(fact["x_prompt_template"])
    # A prompt may have an answer in either split; what is chosen on one is reported on no same prompt.
    reported: set[str] = set()
    for part in ("edit", "train"):
        chosen = [fact for fact in facts if fact["x_split"] == part and _asked(fact) not in reported]
        random.Random(SEED).shuffle(chosen)
        records = [_record(fact, wordings[fact["x_relation_id"]], neighbours) for fact in chosen]
        full = [one for one in records if one["paraphrase_prompts"] and len(one["neighborhood_prompts"]) == NEIGHBOURS]
        write_text(out / f"{part}.json", json.dumps(full[:SPLIT_RECORDS], ensure_ascii=False, indent=1))
        reported |= {_asked(fact) for fact in chosen}
        print(f"{out / part}.json: {min(len(full), SPLIT_RECORDS)} records")


def _asked(fact: dict[str, Any]) -> str:
    return normalise(fact["x_prompt_template"].replace("{}", fact["subject"]))


def _record(fact: dict[str, Any], wordings: list[str], neighbours: dict[tuple[str, str], list[str]]) -> dict[str, Any]:
    """One fact in ROME's layout."""
    subject, own = fact["subject"], fact["x_prompt_template"]
    draw = random.Random(fact["case_id"])
    others = sorted({one for one in wordings if one != own and one.count("{}") == 1})
    phrased = [one.replace("{}", subject) for one in draw.sample(others, min(PARAPHRASES, len(others)))]
    if not fact["x_rephrase_is_generation_prompt"]:
        phrased = [fact["rephrase_prompt"], *phrased][:PARAPHRASES]
    around = [one for one in neighbours.get((fact["x_relation_id"], fact["ground_truth"]), []) if subject not in one]
    return {
        "case_id": fact["case_id"],
        "requested_rewrite": {
            "prompt": own,
            "subject": subject,
            "relation_id": fact["x_relation_id"],
            "target_new": {"str": fact["target_new"]},
            "target_true": {"str": fact["ground_truth"]},
        },
        "paraphrase_prompts": phrased,
        "neighborhood_prompts": draw.sample(around, min(NEIGHBOURS, len(around))),
    }


def _write(file: Path, edits: Sequence[ps.EditRequest]) -> None:
    write_text(file, "".join(json.dumps(one.to_dict(), ensure_ascii=False) + "\n" for one in edits))
    print(f"{file}: {len(edits)} records")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=("real", "split", "larger"))
    parser.add_argument("--data", type=Path, help="where the published files are")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if given.which == "larger":
        larger(given.out)
    elif given.data is None:
        parser.error(f"{given.which} needs --data")
    else:
        {"real": real, "split": split}[given.which](given.data, given.out)


if __name__ == "__main__":
    main()
