"""ZsRE as MEND published it, with the survey's portability questions where a file has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from palimpsest.datasets.base import Partial, Record
from palimpsest.datasets.fields import given_probes, optional_text, text_field, text_list
from palimpsest.errors import DataError
from palimpsest.requests import EditRequest, Probe, normalise

FIELDS = frozenset({"src", "alt"})
_QUESTION = frozenset({"New Question", "New Answer"})
_NQ = "nq question: "


def request(fields: Mapping[str, Any]) -> Partial:
    """One record: `src` (prompt), `alt` (new answer), `subject`, `rephrase`, `answers`, `pred`, `loc`,
    `loc_ans`.

    The old answer is the first of `answers`, or `pred` where that is missing or is itself the new answer (in
    some records the published edit corrects the model). `loc` is a question out of scope. Raises `DataError`
    naming the field.
    """
    prompt, new = text_field(fields, "src"), text_field(fields, "alt")
    probes = [Probe("generality", text, new) for text in text_list(fields, "rephrase")]
    loc = optional_text(fields, "loc")
    if loc:
        loc = loc[len(_NQ) :] if loc.lower().startswith(_NQ) else loc
        probes.append(Probe("locality.out_of_scope", loc, optional_text(fields, "loc_ans")))
    follow_up = _portability(fields)
    probes += [follow_up] if isinstance(follow_up, Probe) else []
    identity = fields.get("id", fields.get("case_id"))
    request = EditRequest(
        prompt,
        new,
        subject=optional_text(fields, "subject"),
        target_old=_old_answer(fields, new),
        probes=given_probes(fields) or tuple(probes),
        fact=optional_text(fields, "fact"),
        id="" if identity is None else str(identity),
    )
    return Partial(request, (follow_up,) if isinstance(follow_up, str) else ())


def has_questions_by_kind(records: Iterable[Record]) -> bool:
    """Whether some record has questions by kind, as EasyEdit's users write them beside ZsRE's fields."""
    for record in records:
        follow_up = record.fields.get("portability")
        is_published = not isinstance(follow_up, Mapping) or not _QUESTION.isdisjoint(follow_up) or not follow_up
        if record.fields.get("locality") or not is_published:
            return True
    return False


def _old_answer(fields: Mapping[str, Any], new: str) -> str | None:
    known = [*text_list(fields, "answers")[:1], *text_list(fields, "pred")]
    different = [answer for answer in known if normalise(answer) != normalise(new)]
    if known and not different:
        raise DataError(
            "The new answer equals the old one, so there is nothing to edit.",
            expected="`alt` to differ from `answers` or `pred`",
            found=f"both are {new!r}",
            where="field `alt`",
        )
    return different[0] if different else None


def _portability(fields: Mapping[str, Any]) -> Probe | str | None:
    """The question, why it is left out, or nothing where the record has none."""
    entry = fields.get("portability") or fields
    if not isinstance(entry, Mapping):
        raise DataError(
            "The portability question cannot be read.",
            expected="an object with `New Question` and `New Answer`",
            found=repr(entry)[:80],
            where="field `portability`",
        )
    question, answer = optional_text(entry, "New Question"), optional_text(entry, "New Answer")
    if not question and not answer:
        return None
    if not question or not answer:
        return f"the portability question has no {'answer' if question else 'question'}"
    return Probe("portability.one_hop", question, answer)
