"""AKEW's unstructured edits: CounterFact, MQuAKE-CF and WikiUpdate with a passage for each new fact (arXiv:2402.18909).

The edit's answer is the passage. The short answer and the triples that the passage was found to state follow from it in
one step: portability.one_hop. Rephrasings expect the passage, as the methods that edit passages are measured.

The short answers themselves are edited by reading the same files as `counterfact` or `mquake`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from palimpsest.datasets.base import Partial
from palimpsest.datasets.counterfact import Rewrite, nested_rewrite
from palimpsest.datasets.criteria import partial
from palimpsest.datasets.fields import optional_text, text_field, text_list
from palimpsest.datasets.mquake import follow_ups, only_rewrite
from palimpsest.errors import DataError
from palimpsest.requests import EditRequest, Probe, filled, normalise
from palimpsest.wording import find_spelled

PASSAGE, TRIPLES = "fact_new_uns", "unsfact_triplets_GPT"
MARKS = (frozenset({"requested_rewrite", f"requested_rewrite.{PASSAGE}"}),)


def request(fields: Mapping[str, Any]) -> Partial:
    """One record. The prompt is `question` or `prompt_full`, if it names the subject, else `prompt` with the subject.

    Raises `DataError` naming the field, and for a record of several edits; a triple that cannot be used is left out,
    with its reason.
    """
    given = fields.get("requested_rewrite")
    only: Any = only_rewrite(fields) if isinstance(given, list) else given
    rewrite = nested_rewrite(only)
    passage = text_field(only, PASSAGE)
    asked = [text for name in ("question", "prompt_full") for text in text_list(only, name)]
    prompts = [*(text for text in asked if find_spelled(rewrite.subject, text) is not None), rewrite.prompt]
    case = fields.get("case_id")
    edit = EditRequest(
        prompts[0],
        passage,
        subject=rewrite.subject,
        target_old=rewrite.old,
        fact=rewrite.fact,
        id="" if case is None else str(case),
    )
    made: list[Probe | str | DataError] = []
    made += [Probe("generality", text, passage) for text in text_list(fields, "paraphrase_prompts")]
    made += _short_answer(only, rewrite, edit)
    made += _stated(only, edit)
    if fields.get("questions"):
        made += follow_ups(fields, prompts)
    made += [Probe("locality.neighborhood", text, rewrite.old) for text in text_list(fields, "neighborhood_prompts")]
    return partial(edit, made)


def _short_answer(rewrite: Mapping[str, Any], parts: Rewrite, edit: EditRequest) -> Iterator[Probe]:
    """The fact as a triple, asked for in its own words, where these are not the edit's."""
    if normalise(parts.prompt) != normalise(edit.prompt):
        others = (*text_list(rewrite, "answer_new"), *text_list(rewrite, "answer_new_alias"))
        yield Probe("portability.one_hop", parts.prompt, parts.new, accepts=others)


def _stated(rewrite: Mapping[str, Any], edit: EditRequest) -> Iterator[Probe | str | DataError]:
    """A question for each triple of the passage: `prompt` with its `subject`, and `target`."""
    triples = rewrite.get(TRIPLES)
    if triples is not None and not isinstance(triples, list):
        yield DataError(
            f"The field `{TRIPLES}` is not a list.",
            expected="a list of objects with `prompt`, `subject` and `target`",
            found=repr(triples)[:80],
            where=f"field `{TRIPLES}`",
        )
        return
    for number, triple in enumerate(triples or (), start=1):
        try:
            if not isinstance(triple, Mapping):
                raise DataError(
                    "A triple is not an object.",
                    expected="an object with `prompt`, `subject` and `target`",
                    found=repr(triple)[:80],
                )
            question = filled(text_field(triple, "prompt"), optional_text(triple, "subject") or edit.subject or "")
            probe = Probe("portability.one_hop", question, text_field(triple, "target"))
        except DataError as error:
            error.where = f"field `{TRIPLES}`, entry {number}" + (f", {error.where}" if error.where else "")
            yield error
            continue
        if normalise(question) == normalise(edit.prompt):
            yield "a triple of the passage asks for the edited prompt itself"
        else:
            yield probe
