"""MQuAKE: questions over two to four facts, some of which are edited (arXiv:2305.14795).

A request here is one edit, so records that edit several facts at once are skipped. Of the others each question is a
probe: one hop from the new answer where the chain is the edited fact and the next one, multi-hop otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from palimpsest.datasets.counterfact import nested_rewrite
from palimpsest.datasets.fields import optional_text, require_different, text_field, text_list
from palimpsest.errors import DataError
from palimpsest.requests import EditRequest, Probe, ProbeKind, normalise

FIELDS = frozenset({"requested_rewrite", "new_single_hops"})
NOTES = (
    "Many labels of MQuAKE's first version are known to be wrong, most where edits of one run contradict each other's "
    "chains; take MQuAKE-CF-3k-v2, and edit one fact at a time.",
)


def request(fields: Mapping[str, Any]) -> EditRequest:
    """One record. Raises `DataError` naming the field, and for a record of several edits."""
    only = only_rewrite(fields)
    rewrite = nested_rewrite(only)
    require_different(rewrite.new, rewrite.old)
    asked = text_list(only, "question")
    probes = [Probe("generality", text, rewrite.new) for text in asked]
    probes += follow_ups(fields, (rewrite.prompt, *asked))
    return EditRequest(
        rewrite.prompt,
        rewrite.new,
        subject=rewrite.subject,
        target_old=rewrite.old,
        probes=tuple(probes),
        fact=rewrite.fact,
        id=str(fields.get("case_id", "")),
    )


def only_rewrite(fields: Mapping[str, Any]) -> Any:
    """The one entry of `requested_rewrite`. Raises `DataError` for a record of several edits, or of none."""
    rewrites = fields.get("requested_rewrite")
    if not isinstance(rewrites, Sequence) or len(rewrites) != 1:
        raise DataError(
            "A record does not edit exactly one fact.",
            expected="one entry in `requested_rewrite`",
            found=f"{len(rewrites)} edits" if isinstance(rewrites, Sequence) else repr(rewrites)[:80],
            where="field `requested_rewrite`",
        )
    return rewrites[0]


def follow_ups(fields: Mapping[str, Any], edited: Sequence[str]) -> list[Probe]:
    """The record's `questions`, which expect `new_answer` and were answered `answer`.

    Arguments:
        fields: the record's.
        edited: the ways in which the edited fact itself is asked for.
    """
    answer, aliases = text_field(fields, "new_answer"), tuple(text_list(fields, "new_answer_alias"))
    kind = _kind(fields, edited)
    right = {normalise(name) for name in (answer, *aliases)}
    # Another chain may lead to the same answer, or to one of its names.
    old = [name for name in _old_names(fields) if normalise(name) not in right]
    return [
        Probe(kind, text, answer, accepts=aliases, expected_old=old[0] if old else None, accepts_old=tuple(old[1:]))
        for text in text_list(fields, "questions")
    ]


def _old_names(fields: Mapping[str, Any]) -> list[str]:
    """What the questions were answered before the edit, where the record says so."""
    old = optional_text(fields, "answer")
    return [old, *text_list(fields, "answer_alias")] if old else []


def _kind(fields: Mapping[str, Any], edited: Sequence[str]) -> ProbeKind:
    """One hop where the chain is the edited fact and one that follows from its answer."""
    hops = fields.get("new_single_hops")
    if not isinstance(hops, list) or not all(isinstance(hop, Mapping) for hop in hops):
        raise DataError(
            "The chain of facts is not a list of objects.",
            expected="`new_single_hops` with `question`, `cloze` and `answer`",
            found=repr(hops)[:80],
            where="field `new_single_hops`",
        )
    names = {normalise(text) for text in edited}
    asked = [{normalise(str(hop.get(name, ""))) for name in ("question", "cloze")} for hop in hops]
    return "portability.one_hop" if len(hops) == 2 and asked[0] & names else "portability.multi_hop"
