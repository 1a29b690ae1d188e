"""RippleEdits: an edit and the questions of six criteria that should or should not change with it (arXiv:2307.12976).

A record says the edit as a sentence and by identifiers, without the subject's and the object's words. The object is
what follows the sentence's last verb; of the sentences of the new and the old fact, the last one that both have.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from palimpsest.datasets.base import Partial
from palimpsest.datasets.criteria import make_probe, partial
from palimpsest.datasets.fields import require_different, text_field
from palimpsest.datasets.questions import names
from palimpsest.errors import DataError
from palimpsest.requests import EditRequest, Probe
from palimpsest.wording import find_subject

CRITERIA = (
    "Subject_Aliasing", "Compositionality_I", "Compositionality_II", "Relation_Specificity", "Relation_Specifity",
    "Forgetfulness", "Logical_Generalization",
)  # fmt: skip
FIELDS = frozenset({"edit", "Subject_Aliasing", "Logical_Generalization"})
NOTES = ("RippleEdits asks a question only of models that answer its conditions before the edit; here all are asked.",)
_VERB = re.compile(r"\b(?:is followed by|follows|is|are) ")


def request(fields: Mapping[str, Any]) -> Partial:
    """One record. Raises `DataError` naming the field; a question that cannot be used is left out with its reason."""
    entry = fields.get("edit")
    if not isinstance(entry, Mapping):
        raise DataError(
            "The edit is not an object.",
            expected="`prompt`, `subject_id`, `relation`, `target_id`",
            found=repr(entry)[:80],
            where="field `edit`",
        )
    original = entry.get("original_fact")
    prompt, new, old = _parts(entry, original if isinstance(original, Mapping) else None)
    fact = _fact(entry)
    edit = EditRequest(prompt, new, subject=find_subject(prompt), target_old=old)
    require_different(new, old)
    made: list[Probe | str | DataError] = []
    for criterion in CRITERIA:
        for case in _cases(fields, criterion):
            made += _probes(criterion, edit, case)
    return partial(EditRequest(prompt, new, target_old=old, fact=fact), made)


def _cases(fields: Mapping[str, Any], criterion: str) -> list[Any]:
    """The test cases of a criterion. Raises `DataError` for what is no list."""
    cases = fields.get(criterion)
    if cases is not None and not isinstance(cases, list):
        raise DataError(
            f"The tests of {criterion} are not a list.",
            expected="a list of objects with `test_queries`",
            found=repr(cases)[:80],
            where=f"field `{criterion}`",
        )
    return cases or []


def _parts(entry: Mapping[str, Any], original: Mapping[str, Any] | None) -> tuple[str, str, str | None]:
    """Prompt, new answer and old answer."""
    sentence = text_field(entry, "prompt").strip().removesuffix(".")
    former = text_field(original, "prompt").strip().removesuffix(".") if original else None
    shared = os.path.commonprefix([sentence, former]) if former else sentence
    verbs = list(_VERB.finditer(shared))
    if not verbs or not sentence[verbs[-1].end() :].strip():
        raise DataError(
            "Where the answer begins cannot be determined.",
            expected="a sentence such as 'The place of birth of Ada is York.'",
            found=repr(sentence),
            where="field `edit`",
        )
    end = verbs[-1].end()
    return sentence[:end], sentence[end:], former[end:] if former else None


def _probes(criterion: str, edit: EditRequest, case: Any) -> Iterator[Probe | str | DataError]:
    """The probes of one test case; one that several questions share in is parted only if all must be right."""
    queries = case.get("test_queries") if isinstance(case, Mapping) else None
    if not isinstance(queries, list) or not all(isinstance(query, Mapping) for query in queries):
        yield f"a test of {criterion} has no list of `test_queries`"
        return
    if len(queries) > 1 and case.get("test_condition") == "OR":
        yield f"a test of {criterion} asks several questions of which one must be right"
        return
    for query in queries:
        # What remains true beside the new answer is asked of the edited fact itself, which would leave it out.
        fact = None if criterion == "Forgetfulness" else _fact(query)
        yield make_probe(criterion, edit, query.get("prompt"), list(_answers(query.get("answers"))), fact=fact)


def _answers(value: Any) -> Iterator[str]:
    """Every name of an answer: its value, then its aliases."""
    for answer in value if isinstance(value, list) else [value]:
        yield from names([answer.get("value"), answer.get("aliases")] if isinstance(answer, Mapping) else answer)


def _fact(entry: Mapping[str, Any]) -> str | None:
    relation, subject = entry.get("relation"), entry.get("subject_id")
    hop = entry.get("second_relation")
    return f"{relation}|{subject}" + (f"|{hop}" if hop else "") if relation and subject else None
