"""Facts of CounterFact that a model knows by itself, and what an edit of one does: the ground of the studies on
pretrained models.

A fact is known when the model's greedy text after the prompt begins with the true answer. Scores are by such prefixes:
*says it*, the text begins with the new answer; *paraphrases*, the same at the record's paraphrases; *neighbours kept*,
the first two words at prompts about other subjects with the same true answer are what the unedited model writes;
*leaks*, the new answer at those prompts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import palimpsest as ps
from palimpsest.models.editable import EditableModel
from palimpsest.requests import EditRequest, normalise

FLAT, POOL = "counterfact_all_21919.jsonl", "counterfact_neighborhood_pool.jsonl"
NEIGHBOURS, NEW_TOKENS = 5, 8


@dataclass(frozen=True)
class Fact:
    """One record: a fact with its paraphrase and prompts about other subjects with the same answer."""

    id: str
    prompt: str
    subject: str
    old: str
    new: str
    paraphrases: tuple[str, ...]
    neighbours: tuple[str, ...]

    def request(self) -> EditRequest:
        """The edit."""
        return EditRequest(
            prompt=self.prompt, subject=self.subject, target_old=self.old, target_new=self.new, id=self.id
        )


def begins_with(text: str, answer: str) -> bool:
    """Whether a text begins with an answer, at a word boundary."""
    text, answer = normalise(text), normalise(answer)
    return text.startswith(answer) and not text[len(answer) : len(answer) + 1].isalnum()


def first_words(text: str) -> list[str]:
    """The first two words."""
    return re.findall(r"\w+", text.casefold())[:2]


def known_facts(
    model: EditableModel, folder: Path, split: str, most: int, *, is_first_token: bool = False
) -> list[Fact]:
    """Facts of a split that the model knows and that have a true paraphrase, in the order of the file.

    Arguments:
        folder: where CounterFact is.
        is_first_token: those whose prompts begin with their subjects, or, left out, the others.
    """
    pool = {(one["relation_id"], one["object"]): one["prompts"] for one in _records(folder / POOL)}
    records = [one for one in _records(folder / FLAT) if one["x_split"] == split]
    if not is_first_token:
        records = [one for one in records if not one["x_rephrase_is_generation_prompt"]]
    records = [one for one in records if one["prompt"].startswith(one["subject"]) is is_first_token]
    found: list[Fact] = []
    for start in range(0, len(records), 128):
        part = records[start : start + 128]
        texts = model.generate([one["prompt"] for one in part], max_new_tokens=6, until=(), forward_batch_size=128)
        for record, text in zip(part, texts, strict=True):
            if begins_with(text, record["ground_truth"]):
                near = pool.get((record["x_relation_id"], record["ground_truth"]), [])
                near = [prompt for prompt in near if record["subject"] not in prompt][:NEIGHBOURS]
                found.append(
                    Fact(
                        str(record["case_id"]), record["prompt"], record["subject"], record["ground_truth"],
                        record["target_new"], (record["rephrase_prompt"],), tuple(near),
                    )
                )  # fmt: skip
        if len(found) >= most:
            break
    return found[:most]


def base_texts(model: EditableModel, facts: Sequence[Fact]) -> dict[str, str]:
    """What the unedited model writes at every prompt."""
    prompts = [p for fact in facts for p in (fact.prompt, *fact.paraphrases, *fact.neighbours)]
    return continuations(model, prompts, NEW_TOKENS, until=("\n",))


def continuations(
    model: EditableModel, prompts: Sequence[str], tokens: int, *, until: Sequence[str] = ()
) -> dict[str, str]:
    """What a model writes after each prompt."""
    unique = list(dict.fromkeys(prompts))
    return dict(zip(unique, model.generate(unique, max_new_tokens=tokens, until=until), strict=True))


def scores(texts: dict[str, str], base: dict[str, str], facts: Sequence[Fact]) -> dict[str, Any]:
    """Shares in percent, over all facts together; the unedited model's true answers at the same prompts beside them."""
    new = [(texts[fact.prompt], fact.new) for fact in facts]
    again = [(texts[prompt], fact.new) for fact in facts for prompt in fact.paraphrases]
    near = [(texts[prompt], base[prompt], fact.new) for fact in facts for prompt in fact.neighbours]
    ceiling = [(base[prompt], fact.old) for fact in facts for prompt in fact.paraphrases]
    return {
        "says_it": _percent(begins_with(text, answer) for text, answer in new),
        "paraphrases": _percent(begins_with(text, answer) for text, answer in again),
        "paraphrases_ceiling": _percent(begins_with(text, answer) for text, answer in ceiling),
        "neighbours_kept": _percent(first_words(text) == first_words(before) for text, before, _ in near),
        "leaks": _percent(begins_with(text, answer) for text, _, answer in near),
    }


def single_edits(
    model: EditableModel, method: ps.Method[Any], facts: Sequence[Fact], base: dict[str, str]
) -> dict[str, Any]:
    """Each fact edited by itself, then scored at its own prompts."""
    texts: list[dict[str, str]] = []
    for fact in facts:
        with model.patched(method.edit(model, [fact.request()]).patch):
            texts.append(base_texts(model, [fact]))
    return _mean([scores(own, base, [fact]) for own, fact in zip(texts, facts, strict=True)])


def batch_edit(
    model: EditableModel, method: ps.Method[Any], facts: Sequence[Fact], base: dict[str, str]
) -> dict[str, Any]:
    """All facts edited at once."""
    with model.patched(method.edit(model, [fact.request() for fact in facts]).patch):
        return scores(base_texts(model, facts), base, facts)


def kept(file: Path, make: Any) -> list[Fact]:
    """Facts from a file, or made and written there."""
    if not file.exists():
        file.write_text(json.dumps([asdict(fact) for fact in make()]), encoding="utf-8")
    listed = json.loads(file.read_text(encoding="utf-8"))
    return [
        Fact(**{**one, "paraphrases": tuple(one["paraphrases"]), "neighbours": tuple(one["neighbours"])})
        for one in listed
    ]


def _mean(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    known = {name: [part[name] for part in parts if part[name] is not None] for name in parts[0]}
    return {name: round(sum(values) / len(values), 1) if values else None for name, values in known.items()}


def _percent(found: Any) -> float | None:
    values = list(found)
    return round(100 * sum(values) / len(values), 1) if values else None


def _records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
