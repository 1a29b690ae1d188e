"""A user's own edits: records with `prompt`, `subject`, `target_new`, `target_old`, and probes.

Names of fields are those of `columns`; questions under `locality` and `portability` may be texts or have EasyEdit's and
KnowEdit's form. Whatever cannot be used is an error that names the record and the field.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from palimpsest.datasets.base import Partial
from palimpsest.datasets.columns import numbered
from palimpsest.datasets.criteria import partial
from palimpsest.datasets.fields import as_text, given_probes, optional_text, text_field, text_list
from palimpsest.datasets.knowedit import questions_of
from palimpsest.datasets.questions import names, paired
from palimpsest.errors import DataError
from palimpsest.files import parse_json
from palimpsest.requests import PLACEHOLDER, EditRequest, Probe, filled, normalise, require_filled
from palimpsest.wording import hidden_characters

_PYTHON_LIST = re.compile(r"\[\s*'")
_STRUCTURED = ("probes", "rephrase", "locality", "portability", "target_old", "accepts", "accepts_old")
Made = Probe | str | DataError
# A cell of a table cannot hold white space that is meant.
_JOINERS = {"none": "", "space": " ", "newline": "\n"}


def request(fields: Mapping[str, Any]) -> Partial:
    """One record, with our names of the fields.

    `rephrase`, `rephrase_1`, ... are other wordings that must get the new answer. `locality`, `locality_1`,
    ... are prompts whose answer must stay what it is; as texts they count as neighbours, with `locality_answer` as what
    is expected. `portability` holds questions that follow from the edit. `accepts` and `accepts_old` are other names of
    the two answers, as are further names in `target_old`. `joiner` is what stands between prompt and answer, or one of
    the words `none`, `space` and `newline`. `probes` is a list as in `EditRequest.to_dict`. Raises `DataError` naming
    the field.
    """
    fields = {name: _structured(name, value) for name, value in fields.items()}
    new, old = text_field(fields, "target_new"), _old_answer(fields)
    subject = optional_text(fields, "subject")
    edit = EditRequest(
        text_field(fields, "prompt"),
        new,
        subject=subject,
        target_old=old,
        fact=_fact(fields, subject),
        id=_identity(fields),
        joiner=_joiner(fields),
        accepts=tuple(text_list(fields, "accepts")),
        accepts_old=(*text_list(fields, "accepts_old"), *_further_names(fields, old)),
    )
    made: list[Made] = []
    if not fields.get("x_rephrase_is_generation_prompt"):
        made += [
            Probe("generality", _filled(text, edit), new, accepts=edit.accepts) for text in _texts(fields, "rephrase")
        ]
    for group in ("locality", "portability"):
        for name in numbered(fields, group):
            made += _group(fields, name, group, edit)
    given = given_probes(fields)
    made += given
    for probe in given:
        if probe.is_locality and normalise(probe.prompt) == normalise(edit.prompt):
            made.append(_asks_the_edit(probe.prompt, "probes"))
    found = partial(edit, made, notes=tuple(remarks(edit, subject, fields)))
    require_filled(found.request)
    return found


def _group(fields: Mapping[str, Any], name: str, group: str, edit: EditRequest) -> Iterator[Made]:
    """The probes of one column of questions."""
    value, answer = fields[name], fields.get(name.replace(group, f"{group}_answer", 1))
    if answer is None:
        found = list(questions_of(value, group, edit))
    else:
        pairs = list(paired(value, answer, f"field `{name}`"))
        found = [
            one
            for prompt, answers in pairs
            if prompt.strip()
            for one in questions_of({"prompt": prompt, "ground_truth": answers}, group, edit)
        ]
    for one in found:
        if group == "locality" and isinstance(one, str) and "edited prompt itself" in one:
            yield _asks_the_edit(edit.prompt, name)
        else:
            yield one


def _asks_the_edit(prompt: str, name: str) -> DataError:
    return DataError(
        "A locality question is the edited prompt itself, whose answer is to change.",
        expected="a question about something else",
        found=repr(prompt),
        where=f"field `{name}`",
        remedy="ask about another subject or another relation there, or put it under `rephrase`",
    )


def _texts(fields: Mapping[str, Any], stem: str) -> list[str]:
    """The texts in `stem`, `stem_1`, ..., each a text, a list of texts, or a list of lists of them."""
    found = []
    for name in numbered(fields, stem):
        texts = list(names(fields[name]))
        if not texts and fields[name] not in (None, "", []) and not isinstance(fields[name], str):
            raise DataError(
                f"The field `{name}` is neither text nor a list of texts.",
                expected="text, or a list of texts",
                found=repr(fields[name])[:80],
                where=f"field `{name}`",
            )
        found += texts
    return found


def _structured(name: str, value: Any) -> Any:
    """Parses a table's cell: a JSON list or object in a column that allows one, else the cell's text."""
    stem = re.sub(r"_\d+$", "", name)
    if not isinstance(value, str) or stem not in _STRUCTURED:
        return value
    text = value.strip()
    if stem != "target_old" and _PYTHON_LIST.match(text) and text.endswith("]"):
        raise DataError(
            f"The field `{name}` holds a list as Python prints it.",
            expected='a JSON list, such as ["...", "..."]'
            + (f", or columns {stem}_1, {stem}_2" if stem != "probes" else ""),
            found=text[:80],
            where=f"field `{name}`",
        )
    if text[:1] not in ("[", "{"):
        return value
    try:
        found = parse_json(text)
    except ValueError:
        return value
    is_texts = isinstance(found, list) and all(isinstance(one, str) for one in found)
    return found if is_texts or stem not in ("rephrase", "target_old", "accepts", "accepts_old") else value


def _old_answer(fields: Mapping[str, Any]) -> str | None:
    """The old answer; of several names of it, as other tools keep them, the first one."""
    value = fields.get("target_old")
    if isinstance(value, list):
        return next(names(value), None)
    if value is None and fields.get("target_new") is not None:
        # ZsRE's fields: the right answers, and what the model says.
        known = [*names(fields.get("answers")), *names(fields.get("pred"))]
        return next((one for one in known if normalise(one) != normalise(str(fields["target_new"]))), None)
    return optional_text(fields, "target_old")


def _further_names(fields: Mapping[str, Any], old: str | None) -> list[str]:
    """The other names in a list of names of the old answer."""
    value = fields.get("target_old")
    return [one for one in names(value) if one != old] if isinstance(value, list) else []


def _fact(fields: Mapping[str, Any], subject: str | None) -> str | None:
    relation = fields.get("relation_id", fields.get("x_relation_id"))
    return optional_text(fields, "fact") or (f"{relation}|{subject}" if relation and subject else None)


def _filled(text: str, edit: EditRequest) -> str:
    return filled(text, edit.subject) if edit.subject else text


def remarks(edit: EditRequest, subject: str | None, fields: Mapping[str, Any] = MappingProxyType({})) -> Iterator[str]:
    """Returns remarks on an edit that a user should read.

    Arguments:
        edit: the edit.
        subject: its subject as it was given.
        fields: the record it was read from.
    """
    for name in ("prompt", "target_new", "target_old"):
        if fields.get(name) is not None and not isinstance(fields[name], str | list):
            yield f"`{name}` is a number or a truth value and is read as the text {as_text(fields[name])!r}"
    if subject is not None and edit.subject != subject.strip():
        yield f"The subject {subject.strip()!r} is spelled {edit.subject!r} in the prompt, which is what counts"
    if edit.subject and PLACEHOLDER.search(edit.prompt):
        yield "The prompt keeps its braces {}, since the subject stands in it already"
    if edit.target_old is not None and normalise(edit.target_old) == normalise(edit.target_new):
        yield (
            f"The answers {edit.target_old!r} and {edit.target_new!r} differ in case or spaces only; "
            "free generation is compared without them and counts both as right"
        )
    unseen = [
        f"{one} in `{name}`" for name in ("prompt", "target_new") for one in hidden_characters(getattr(edit, name))
    ]
    if unseen:
        yield f"Invisible characters are part of the edit ({'; '.join(unseen[:3])})"
    ending = next((one for one in (edit.target_new, edit.target_old) if one and _ends_in(edit.prompt, one)), None)
    if ending is not None:
        yield f"The prompt ends in the answer {ending!r}; it should be the text before the answer"


def _ends_in(prompt: str, answer: str) -> bool:
    text, end = normalise(prompt).rstrip(".!"), normalise(answer).rstrip(".!")
    return bool(end) and text.endswith(end) and not text[: -len(end)][-1:].isalnum() and text != end


def _joiner(fields: Mapping[str, Any]) -> str | None:
    given = fields.get("joiner")
    return _JOINERS.get(given, given) if isinstance(given, str) else given


def _identity(fields: Mapping[str, Any]) -> str:
    return (optional_text(fields, "id") or "").strip()
