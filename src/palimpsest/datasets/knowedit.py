"""KnowEdit's edits of facts: wiki_counterfact, wiki_recent and ZsRE, with questions of several criteria.

The layout is that of arXiv:2401.01286. A question of `Relation_Specificity` is to be about another relation of the
subject. In the ZsRE part many are the edited question in other words and expect the old answer, so that a right edit
would count as damage. They are recognised by that answer and left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from palimpsest.datasets.base import Partial, Record
from palimpsest.datasets.criteria import is_own_name, make_probe, partial
from palimpsest.datasets.fields import optional_text, require_different, text_field, text_list
from palimpsest.datasets.questions import by_kind, questions
from palimpsest.errors import DataError
from palimpsest.requests import EditRequest, Probe, filled, normalise

FIELDS = frozenset({"prompt", "target_new", "portability", "locality"})
GROUPS = ("portability", "locality")


def request(fields: Mapping[str, Any]) -> Partial:
    """One record. Raises `DataError` naming the field; a question that cannot be used is left out with its reason."""
    new = text_field(fields, "target_new")
    old = text_list(fields, "ground_truth")
    subject = optional_text(fields, "subject")
    require_different(new, old[0] if old else None)
    edit = EditRequest(text_field(fields, "prompt"), new, subject=subject, target_old=old[0] if old else None)
    made: list[Probe | str | DataError] = []
    for name in ("rephrase_prompt", "rephrase"):
        made += [Probe("generality", text, new) for text in text_list(fields, name)]
    for group in GROUPS:
        criteria = fields.get(group) or {}
        if not isinstance(criteria, Mapping):
            raise DataError(
                f"The field `{group}` is not an object.",
                expected="lists of questions by criterion, such as `Subject_Aliasing`",
                found=repr(criteria)[:80],
                where=f"field `{group}`",
            )
        made += questions_of(criteria, group, edit)
    return partial(edit, made)


def is_published_form(records: Iterable[Record]) -> bool:
    """Whether the questions could be a published file's: lists of objects, under KnowEdit's names of the criteria.

    EasyEdit's editor takes them from its users as one object of lists, and the kinds have names such as `one_hop`.
    """
    groups = [record.fields.get(group) for record in records for group in GROUPS]
    kinds = [item for group in groups if isinstance(group, Mapping) for item in group.items()]
    return not any(isinstance(entries, Mapping) or is_own_name(kind) for kind, entries in kinds)


def questions_of(value: object, group: str, edit: EditRequest) -> Iterator[Probe | str | DataError]:
    """The probes of a group of questions; why one is not asked; what is wrong with one."""
    old = normalise(edit.target_old or "")
    for criterion, entries in by_kind(value, group):
        for entry in entries if isinstance(entries, list) else [entries]:
            try:
                asked = list(questions(entry, f"field `{group}`, `{criterion}`"))
            except DataError as error:
                yield DataError(
                    f"{criterion}: {error.problem[:1].lower()}{error.problem[1:]}",
                    expected=error.expected,
                    found=error.found,
                    where=f"field `{group}`",
                )
                continue
            for prompt, answers in asked:
                if criterion == "Relation_Specificity" and old and old in map(normalise, answers):
                    yield "it expects the old answer, so that it may ask for the edited fact itself"
                else:
                    text = filled(prompt, edit.subject) if edit.subject else prompt
                    made = make_probe(criterion, edit, text, answers)
                    if isinstance(made, DataError):
                        made.where = f"field `{group}`"
                    yield made
