"""Chooses the records of the two real data sets that models are taught and edits are measured on.

    python bench/real_facts.py --data DIR --real real

`DIR` holds the published files (`counterfact/`, `zsre/`); `real` gets one file of edits for each data set, one of those
that are reported, which recipes (`bench/recipes/*.real.toml`) read, and later the models that `palimpsest world train`
makes of them (`make real`). Neither is part of this repository.

CounterFact: the records of ROME's layout, which have two paraphrases and ten neighbours each, then those of the flat
layout that have a true paraphrase. ZsRE: records of the published evaluation file. Of each, some records are for
choosing settings and are not reported.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import palimpsest as ps
from palimpsest.datasets import load_edits
from palimpsest.files import write_text
from palimpsest.requests import normalise

FILES = {
    "counterfact": ("counterfact/counterfact_full_500.json", "counterfact/counterfact_all_21919.jsonl"),
    "zsre": ("zsre/zsre_3k.json",),
}
# As in the Makefile.
PHRASINGS = {"counterfact": 3, "zsre": 4}
NUM_RECORDS = {"counterfact": 1800, "zsre": 3000}
LOCALITY = {"counterfact": "locality.neighborhood", "zsre": "locality.out_of_scope"}
REPORTED = "{}-reported.jsonl"
FOR_CHOOSING = {"counterfact": slice(1400, 1800), "zsre": slice(2600, 3000)}


def select(data: Path, name: str) -> list[ps.EditRequest]:
    """The first records of a data set that have a true answer and a rephrasing."""
    found: dict[str, ps.EditRequest] = {}
    for file in FILES[name]:
        for request in load_edits(data / file).requests:
            if request.target_old and any(probe.kind == "generality" for probe in request.probes):
                found.setdefault(request.id, request)
    return list(found.values())[: NUM_RECORDS[name]]


def records(real: Path, name: str, *, for_choosing: bool) -> ps.Dataset:
    """The records that settings are chosen on, or those that are reported; of each prompt one."""
    given = load_edits(real / f"{name}.jsonl").requests
    chosen = FOR_CHOOSING[name]
    kept = given[chosen] if for_choosing else given[: chosen.start]
    earlier = set() if not for_choosing else {normalise(request.prompt) for request in given[: chosen.start]}
    by_prompt = {normalise(request.prompt): request for request in reversed(kept)}
    distinct = [one for prompt, one in reversed(by_prompt.items()) if prompt not in earlier]
    return ps.Dataset(f"{name}{' (choosing)' if for_choosing else ''}", tuple(distinct))


def real_folder() -> argparse.ArgumentParser:
    """The option that all recipes on real facts have."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--real", type=Path, default=Path("real"), help="where the chosen records and the models are")
    return parser


def _write(file: Path, edits: Sequence[ps.EditRequest]) -> None:
    write_text(file, "".join(json.dumps(one.to_dict(), ensure_ascii=False) + "\n" for one in edits))
    print(f"{file}: {len(edits)} records")


def main() -> None:
    """Writes the files of edits of each data set."""
    parser = real_folder()
    parser.add_argument("--data", type=Path, required=True, help="where the published files are")
    options = parser.parse_args()
    for name in FILES:
        _write(options.real / f"{name}.jsonl", select(options.data, name))
        _write(options.real / REPORTED.format(name), records(options.real, name, for_choosing=False).requests)


if __name__ == "__main__":
    main()
