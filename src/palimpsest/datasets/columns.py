"""The names of a user's columns: in any case, with spaces or underscores, and under the names other tools give them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from types import MappingProxyType

from palimpsest.datasets.base import Record
from palimpsest.errors import DataError, near_matches

COLUMNS = (
    "prompt", "subject", "target_new", "target_old", "rephrase", "locality", "portability", "probes", "fact", "id",
    "accepts", "accepts_old", "joiner",
)  # fmt: skip
REQUIRED = ("prompt", "target_new")
SYNONYMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "prompt": ("prompts", "question", "query", "src", "input"),
        "subject": ("subjects", "subj", "entity"),
        "target_new": (
            "target", "new_target", "new_answer", "answer_new", "new", "alt", "new_object", "object_new",
        ),
        "target_old": (
            "old_target", "old_answer", "answer_old", "old", "ground_truth", "target_true", "true_answer", "old_object",
            "object_old", "original_answer", "current_answer",
        ),
        "rephrase": (
            "rephrases", "rephrased", "rephrased_prompt", "rephrase_prompt", "rephrase_prompts", "rephrasing",
            "rephrasings", "paraphrase", "paraphrases", "paraphrase_prompt", "paraphrase_prompts", "paraphrased_prompt",
        ),
        "locality": (
            "locality_prompt", "locality_prompts", "locality_inputs", "neighborhood", "neighbourhood", "neighbor",
            "neighbors", "neighborhood_prompt", "neighborhood_prompts", "neighbourhood_prompts", "loc", "loc_prompt",
        ),
        "locality_answer": (
            "locality_answers", "locality_ground_truth", "locality_expected", "locality_target", "loc_ans",
        ),
        "portability": ("portability_prompt", "portability_prompts", "portability_inputs", "portability_question"),
        "portability_answer": (
            "portability_answers", "portability_ground_truth", "portability_expected", "portability_target",
        ),
        "probes": ("probe", "tests"),
        "id": ("case_id", "uid", "edit_id", "record_id"),
    }
)  # fmt: skip
AMBIGUOUS: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(("answer", "label", "labels", "output", "completion", "object", "value"), "the new or the old answer")
)
# Columns of published files that say nothing an edit needs: read without a word.
_KNOWN_OTHERS = frozenset(
    {"split", "x_split", "relation_id", "x_relation_id", "x_rephrase_is_generation_prompt", "cond", "pred", "answers"}
    | {"pararel_idx", "attribute_prompts", "generation_prompts", "concept", "subject_id", "target_neg"}
)
_NUMBERED = re.compile(r"(rephrase|locality|locality_answer|portability|portability_answer)_(\d+)")
_SHORT, _ALIKE, _LONGEST_SHOWN = 3, 0.7, 200
_STEMS = ("rephrase", "locality_answer", "locality", "portability_answer", "portability")
_NAMES = MappingProxyType(
    {name: name for name in (*COLUMNS, "locality_answer", "portability_answer")}
    | {other: name for name, others in SYNONYMS.items() for other in others}
)


def read_columns(records: Iterable[Record]) -> tuple[list[Record], list[str]]:
    """The records with their fields under our own names, and notes on fields that were renamed or are not read.

    Raises `DataError` for a name that is probably a misspelt one, with its near matches; for a missing required column;
    and for two columns of one meaning.
    """
    read, renamed, ignored = [], dict[str, str](), dict[str, str]()
    for record in records:
        given = _meant(record)
        renamed |= {name: known for known, name in given.items() if known != name}
        meanings = {name: known for known, name in given.items()}
        fields = {meanings.get(name, name): value for name, value in record.fields.items()}
        for name in record.fields:
            if name not in meanings and name not in _KNOWN_OTHERS and name not in ignored:
                if column_of(name) is None:
                    _check_unknown(name, given, record)
                ignored[name] = record.where
        read.append(Record(record.where, fields))
    absent = [name for name in REQUIRED if read and not any(name in record.fields for record in read)]
    if absent:
        raise _no_column(absent, read[0])
    notes = []
    if renamed:
        shown = ", ".join(f"{name!r} as `{known}`" for name, known in renamed.items())
        notes.append(f"Fields read under another name: {shown}.")
    if ignored:
        notes.append(f"Fields that are not read: {', '.join(map(repr, ignored))}.")
    return read, notes


def _meant(record: Record) -> dict[str, str]:
    """The name that a record gives to each of our fields. A name of ours goes before another tool's for the same."""
    given: dict[str, str] = {}
    for name in record.fields:
        known = column_of(name)
        if known is None:
            continue
        other = given.setdefault(known, name)
        if other == name:
            continue
        ours = [one for one in (other, name) if _folded(one) == known]
        if known == "rephrase":
            # Several columns of rephrasings are as good as one; numbers that nobody gives keep them apart.
            given[f"rephrase_{1000 + len(given)}"] = name
        elif len(ours) != 1:
            raise _twice(known, other, name, record)
        else:
            given[known] = ours[0]
    return given


def column_of(name: str) -> str | None:
    """The field that a column's name means, with its number where it has one; `None` for a name that means none."""
    folded = _folded(name)
    if folded in _NAMES:
        return _NAMES[folded]
    stem, _, number = folded.rpartition("_")
    if not number.isdigit():
        # "rephrase1" and "Rephrase 1" are one name.
        stem, number = folded.rstrip("0123456789"), folded[len(folded.rstrip("0123456789")) :]
    known = _NAMES.get(stem.rstrip("_")) if number else None
    return f"{known}_{int(number)}" if known in _STEMS else None


def numbered(fields: Mapping[str, object], stem: str) -> list[str]:
    """The fields `stem`, `stem_1`, `stem_2`, ... that are there, in the order of their numbers."""
    names = [name for name in fields if name == stem or ((m := _NUMBERED.fullmatch(name)) and m[1] == stem)]
    return sorted(names, key=lambda name: int(name[len(stem) + 1 :] or 0))


def _folded(name: str) -> str:
    """`Target New`, `target-new` and `targetNew` in one form."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", unicodedata.normalize("NFKC", name.strip()))
    return re.sub(r"[\s\-.:/()]+", "_", text).strip("_").casefold()


def _check_unknown(name: str, given: Mapping[str, str], record: Record) -> None:
    """Raises `DataError` when a name cannot be a column of the user's own that we need not read."""
    missing = [one for one in REQUIRED if one not in given]
    folded = _folded(name)
    if missing and folded in AMBIGUOUS:
        raise DataError(
            f"The field {name!r} could be {AMBIGUOUS[folded]}.",
            expected="`target_new` for the answer that the prompt should get, `target_old` for today's",
            found=", ".join(map(repr, record.fields)),
            where=f"{record.where}, field `{name}`",
            remedy=f"rename {name!r} to target_new or to target_old",
        )
    close = _misspelt(folded, [one for one in COLUMNS if one not in given])
    if not given and not any(_misspelt(_folded(one), list(COLUMNS)) for one in record.fields):
        raise _no_names(record)
    if close or missing:
        lacks = f"the required {' and '.join(f'`{one}`' for one in missing)}; " if missing else ""
        suggestion = f"did you mean {' or '.join(map(repr, close))}?" if close else None
        raise DataError(
            f"There is no field named {name!r}.",
            expected=f"{lacks}the fields are {', '.join(COLUMNS)} (rephrase_1, locality_1, ... too)",
            found=", ".join(map(repr, record.fields)),
            where=f"{record.where}, field `{name}`",
            remedy=suggestion or f"name the columns {', '.join(REQUIRED)}",
        )


def _misspelt(name: str, known: list[str]) -> list[str]:
    """Names so close that the given one can hardly be a column of its own (as `notes` is, beside `probes`)."""
    return [
        one
        for one in near_matches(name, known)
        if (name in one and len(name) > _SHORT) or SequenceMatcher(None, name, one).ratio() >= _ALIKE
    ]


def _no_names(record: Record) -> DataError:
    return DataError(
        "None of the fields has a known name.",
        expected=f"the fields {', '.join(COLUMNS)}, of which {' and '.join(REQUIRED)} are required",
        found=", ".join(map(repr, record.fields))[:_LONGEST_SHOWN] or "no fields",
        where=record.where,
        remedy="name the fields; in a table the first line holds the names: prompt,subject,target_new,target_old",
    )


def _no_column(absent: list[str], record: Record) -> DataError:
    return DataError(
        f"No record has a `{absent[0]}`.",
        expected=f"the required fields {' and '.join(REQUIRED)}",
        found=f"the fields {', '.join(map(repr, record.fields)) or '(none)'}",
        where=f"{record.where}, field `{absent[0]}`",
        remedy=f"add the column {absent[0]}, or rename the one that holds it",
    )


def _twice(known: str, first: str, second: str, record: Record) -> DataError:
    return DataError(
        f"Two fields mean `{known}`.",
        expected=f"one of them, or numbers: {known}_1, {known}_2" if known in _STEMS else "one of them",
        found=f"{first!r} and {second!r}",
        where=record.where,
        remedy="rename one of them, or leave it out",
    )
