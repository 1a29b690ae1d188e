"""CounterFact: ROME's nested layout and the flat one that EasyEdit and F-Learning use.

A record with a list `probes` says itself what tests it; nothing is then derived from its other fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from palimpsest.datasets.fields import given_probes, optional_text, require_different, text_field, text_list
from palimpsest.errors import DataError
from palimpsest.requests import EditRequest, Probe

NESTED_FIELDS = frozenset({"requested_rewrite"})
FLAT_FIELDS = frozenset({"case_id", "prompt", "target_new", "ground_truth", "locality_prompt"})


@dataclass(frozen=True)
class Rewrite:
    """A requested rewrite, as ROME's and MQuAKE's layouts write it: the prompt with its subject, and both answers."""

    prompt: str
    subject: str
    new: str
    old: str
    fact: str | None


def request(fields: Mapping[str, Any]) -> EditRequest:
    """One record of either layout. Raises `DataError` naming the field."""
    return _nested(fields) if "requested_rewrite" in fields else _flat(fields)


def _nested(fields: Mapping[str, Any]) -> EditRequest:
    """ROME's layout.

    Paraphrases test generality; neighbours are other subjects with the old answer and must keep it. Attribute
    prompts (other subjects that have the new answer already) and generation prompts test nothing we measure.
    """
    rewrite = nested_rewrite(fields["requested_rewrite"])
    new, old = rewrite.new, rewrite.old
    require_different(new, old)
    probes = [Probe("generality", prompt, new) for prompt in text_list(fields, "paraphrase_prompts")]
    probes += [Probe("locality.neighborhood", prompt, old) for prompt in text_list(fields, "neighborhood_prompts")]
    return EditRequest(
        rewrite.prompt,
        new,
        subject=rewrite.subject,
        target_old=old,
        probes=given_probes(fields) or tuple(probes),
        fact=optional_text(fields, "fact") or rewrite.fact,
        id=_identity(fields),
    )


def nested_rewrite(rewrite: object) -> Rewrite:
    """The parts of a requested rewrite. Raises `DataError` naming the field."""
    if not isinstance(rewrite, Mapping):
        raise DataError(
            "The requested rewrite is not an object.",
            expected="`prompt`, `subject`, `target_new`, `target_true`",
            found=repr(rewrite)[:80],
            where="field `requested_rewrite`",
        )
    subject, relation = text_field(rewrite, "subject"), rewrite.get("relation_id")
    return Rewrite(
        text_field(rewrite, "prompt").replace("{}", subject),
        subject,
        _answer(rewrite, "target_new"),
        _answer(rewrite, "target_true"),
        f"{relation}|{subject}" if relation else None,
    )


def _flat(fields: Mapping[str, Any]) -> EditRequest:
    """EasyEdit's layout. Rephrase prompts flagged as generation prompts are not paraphrases: left out."""
    new = text_field(fields, "target_new")
    subject = optional_text(fields, "subject")
    probes = []
    if not fields.get("x_rephrase_is_generation_prompt"):
        probes += [Probe("generality", prompt, new) for prompt in text_list(fields, "rephrase_prompt")]
    prompts, answers = text_list(fields, "locality_prompt"), text_list(fields, "locality_ground_truth")
    for index, prompt in enumerate(prompts):
        probes.append(Probe("locality.neighborhood", prompt, answers[index] if index < len(answers) else None))
    old = text_list(fields, "ground_truth")
    require_different(new, old[0] if old else None)
    relation = fields.get("relation_id", fields.get("x_relation_id"))
    return EditRequest(
        text_field(fields, "prompt"),
        new,
        subject=subject,
        target_old=old[0] if old else None,
        probes=given_probes(fields) or tuple(probes),
        fact=optional_text(fields, "fact") or (f"{relation}|{subject}" if relation and subject else None),
        id=_identity(fields),
    )


def _answer(rewrite: Mapping[str, Any], name: str) -> str:
    value = rewrite.get(name)
    return text_field({name: value.get("str")} if isinstance(value, Mapping) else rewrite, name)


def _identity(fields: Mapping[str, Any]) -> str:
    identity = fields.get("id", fields.get("case_id"))
    return "" if identity is None else str(identity)
