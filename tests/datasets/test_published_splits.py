"""`runs/facts.py split`: what options are chosen on is never reported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from palimpsest.datasets import load_edits
from palimpsest.requests import normalise

ROOT = Path(__file__).parents[2]
PLACES = ["Oslo", "Lima", "Graz", "Bern", "Riga", "Kyiv", "Baku", "Doha"]


def test_no_prompt_is_in_both_splits(tmp_path: Path) -> None:
    facts = [
        _fact(number, subject, old, split)
        for number, (subject, old, split) in enumerate(
            [
                ("Oslo", "Lima", "edit"),
                ("oslo", "Graz", "train"),  # the same question, with another right answer
                ("Bern", "Lima", "edit"),
                ("Riga", "Graz", "train"),
            ]
        )
    ]
    folder = tmp_path / "data" / "counterfact"
    folder.mkdir(parents=True)
    _write(folder / "counterfact_all_21919.jsonl", facts)
    around = [f"The twin city of {place} is" for place in PLACES]
    pool = [{"relation_id": "P190", "object": old, "prompts": around} for old in ("Lima", "Graz")]
    _write(folder / "counterfact_neighborhood_pool.jsonl", pool)

    command = [sys.executable, "runs/facts.py", "split", "--data", str(tmp_path / "data"), "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)

    prompts = {
        part: [normalise(one.prompt) for one in load_edits(tmp_path / f"{part}.json").requests]
        for part in ("edit", "train")
    }
    assert sorted(prompts["edit"]) == ["bern is a twin city of", "oslo is a twin city of"]
    assert prompts["train"] == ["riga is a twin city of"]


def _fact(number: int, subject: str, old: str, split: str) -> dict[str, object]:
    return {
        "case_id": number,
        "subject": subject,
        "x_prompt_template": "{} is a twin city of",
        "x_relation_id": "P190",
        "x_rephrase_is_generation_prompt": False,
        "rephrase_prompt": f"The city that is twinned with {subject} is",
        "target_new": "Doha",
        "ground_truth": old,
        "x_split": split,
    }


def _write(file: Path, records: list[dict[str, object]]) -> None:
    file.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
