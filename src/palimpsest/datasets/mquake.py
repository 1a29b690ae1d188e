"""MQuAKE: questions over two to four facts, some of which are edited (arXiv:2305.14795).

A request here is one edit, so records that edit several facts at once are skipped. Of the others each question is a
probe: one hop from the new answer where the chain is the edited fact and the next one, multi-hop otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from palimpsest.datasets.counterfact import nested_rewrite
from palimpsest.datasets.fields import require_different, text_field, text_list
from palimpsest.errors import DataError
from palimpsest.requests import EditRequest, Probe, ProbeKind, normalise

FIELDS = frozenset({"requested_rewrite", "new_single_hops"})
NOTES = (
    "Many labels of MQuAKE's first version are known to be wrong, most where edits of one run contradict each other's "
    "chains; take MQuAKE-CF-3k-v2, and edit one fact at a time.",
)


def request(fields: Mapping[str, Any]) -> EditRequest:
    """One record. Raises `DataError` naming the field, and for a record of several edits."""
    rewrites = fields.get("requested_rewrite")
    if not isinstance(rewrites, Sequence) or len(rewrites) != 1:
        raise DataError(
            "A record does not edit exactly one fact.",
            expected="one entry in `requested_rewrite`",
            found=f"{len(rewrites)} edits" if isinstance(rewrites, Sequence) else repr(rewrites)[:80],
            where="field `requested_rewrite`",
        )
    rewrite = nested_rewrite(rewrites[0])
    require_different(rewrite.new, rewrite.old)
    answer, aliases = text_field(fields, "new_answer"), tuple(text_list(fields, "new_answer_alias"))
    prompt = rewrite.prompt
    kind = _kind(fields, prompt, text_list(rewrites[0], "question"))
    probes = [Probe("generality", text, rewrite.new) for text in text_list(rewrites[0], "question")]
    probes += [Probe(kind, text, answer, accepts=aliases) for text in text_list(fields, "questions")]
    return EditRequest(
        prompt,
        rewrite.new,
        subject=rewrite.subject,
        target_old=rewrite.old,
        probes=tuple(probes),
        fact=rewrite.fact,
        id=str(fields.get("case_id", "")),
    )


def _kind(fields: Mapping[str, Any], prompt: str, questions: Sequence[str]) -> ProbeKind:
    """One hop where the chain is the edited fact and one that follows from its answer."""
    hops = fields.get("new_single_hops")
    if not isinstance(hops, list) or not all(isinstance(hop, Mapping) for hop in hops):
        raise DataError(
            "The chain of facts is not a list of objects.",
            expected="`new_single_hops` with `question`, `cloze` and `answer`",
            found=repr(hops)[:80],
            where="field `new_single_hops`",
        )
    edited = {normalise(text) for text in (prompt, *questions)}
    asked = [{normalise(str(hop.get(name, ""))) for name in ("question", "cloze")} for hop in hops]
    return "portability.one_hop" if len(hops) == 2 and asked[0] & edited else "portability.multi_hop"
