"""A data set: requests that could be read, and an account of those that could not."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from palimpsest.errors import DataError, PalimpsestError, some_of
from palimpsest.provenance import digest
from palimpsest.requests import EditRequest, Probe
from palimpsest.showing import counted, html_table, named
from palimpsest.wording import find_subject

SHOWN = 5


@dataclass(frozen=True)
class Record:
    """One record of a file before it is understood.

    Arguments:
        where: `file:line`, or the place in a list.
        fields: what the file says, by field name.
    """

    where: str
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Skipped:
    """A record that is not in the data set, with the reason."""

    where: str
    reason: str


@dataclass(frozen=True)
class Partial:
    """A request made of a record of which some questions could not be used.

    Arguments:
        request: the edit with the probes that could be made.
        left_out: each of the others: why it is not asked though nothing is wrong with it, or the error that says what
            is. In a user's own file an error counts as one of the whole record.
        notes: what a user should know about the record; said once with the places of all records that it is true of.
    """

    request: EditRequest
    left_out: tuple[str | DataError, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """Edits with their probes.

    Arguments:
        name: what to call it in records.
        requests: the edits, in the order of the file.
        skipped: records that could not be used.
        left_out: questions of a record that could not be used, while its edit could. Nothing is dropped without
            standing in one of the two.
        notes: sentences a user should read, such as subjects that were found rather than given.
        neutral_text: sentences that no edit is about, for perplexity before and after.
    """

    name: str
    requests: tuple[EditRequest, ...]
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    neutral_text: tuple[str, ...] = ()
    left_out: tuple[Skipped, ...] = ()

    def __repr__(self) -> str:
        skipped = f"{len(self.skipped):,} skipped" if self.skipped else ""
        return named(self, repr(self.name), counted(len(self.requests), "edit"), skipped)

    def _repr_html_(self) -> str:
        rows = [(one.prompt, one.target_old, one.target_new, len(one.probes)) for one in self.requests]
        return html_table(repr(self), ("prompt", "before", "after", "probes"), rows)

    def __len__(self) -> int:
        return len(self.requests)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of every request and probe: two data sets that ask the same have the same one."""
        return digest([request.to_dict() for request in self.requests])

    def sample(self, num_edits: int, seed: int = 0) -> Dataset:
        """Some of the edits, drawn without replacement.

        A smaller sample of one seed is the beginning of a larger one, so that runs of 10 and of 100 edits
        share their first ten. Raises `DataError` when there are not that many.
        """
        if not 1 <= num_edits <= len(self.requests):
            raise DataError(
                "The data set does not have that many edits.",
                expected=f"1 to {len(self.requests)}",
                found=f"num_edits = {num_edits}",
                where=f"data set {self.name!r}",
                remedy="ask for fewer, or take a larger data set",
            )
        order = list(range(len(self.requests)))
        random.Random(f"sample|{seed}").shuffle(order)
        return replace(self, requests=tuple(self.requests[index] for index in order[:num_edits]))

    def with_probes(self, most: int) -> Dataset:
        """The same edits with only the first `most` probes of each kind."""

        def first(probes: Iterable[Probe]) -> Iterator[Probe]:
            seen: Counter[str] = Counter()
            for probe in probes:
                seen[probe.kind] += 1
                if seen[probe.kind] <= most:
                    yield probe

        return replace(self, requests=tuple(replace(one, probes=tuple(first(one.probes))) for one in self.requests))


Parse = Callable[[Mapping[str, Any]], EditRequest | Partial]
"""From a record's fields to a request; raises `DataError` whose `where` names the field."""


def assemble(
    name: str,
    records: Iterable[Record],
    parse: Parse,
    *,
    is_strict: bool,
    neutral_text: Iterable[str] = (),
    notes: Iterable[str] = (),
) -> Dataset:
    """Reads every record and accounts for each.

    Arguments:
        name: the data set's name.
        records: the records with their places.
        parse: the format.
        is_strict: records that cannot be used are an error (a user's own file); otherwise they are skipped and
            counted (a published data set).
        neutral_text: passed through.
        notes: passed through, in front of those about subjects.

    Raises `DataError` when strict, about the first bad record, with the places and problems of the others; and when
    not a single record can be used.
    """
    places: dict[str, tuple[str, EditRequest]] = {}
    skipped: list[Skipped] = []
    found: list[str] = []
    missing: list[str] = []
    bad: list[DataError] = []
    left_out: list[Skipped] = []
    remarks: dict[str, list[str]] = {}
    for record in records:
        try:
            made = parse(record.fields)
            parsed = made if isinstance(made, Partial) else Partial(made)
            request = parsed.request
            for lost in parsed.left_out:
                if is_strict and isinstance(lost, DataError):
                    raise lost
            if request.subject is None:
                request = _with_subject(request, record.where, found, missing)
            reason = _repetition(request, places)
        except PalimpsestError as error:
            bad.append(located(error, record.where))
            skipped.append(Skipped(record.where, "; ".join([error.problem, *(t for _, t in error.details())])))
            continue
        if reason:
            skipped.append(Skipped(record.where, reason))
        else:
            places[request.id] = (record.where, request)
            left_out += [Skipped(record.where, _reason(lost)) for lost in parsed.left_out]
            for remark in parsed.notes:
                remarks.setdefault(remark, []).append(record.where)
    if is_strict and bad:
        raise _all_in_one(bad)
    if not places:
        first = skipped[0] if skipped else None
        raise DataError(
            "The data set has no usable record.",
            expected="at least one record that is an edit",
            found=f"{len(skipped)} unusable; the first: {first.reason}" if first else "no records",
            where=first.where if first else name,
        )
    own = [f"{remark}: {_listed(places)}." for remark, places in remarks.items()]
    all_notes = [*notes, *own, *_subject_notes(found, missing), *_left_out_notes(left_out)]
    requests = tuple(request for _, request in places.values())
    return Dataset(name, requests, tuple(skipped), tuple(all_notes), tuple(neutral_text), tuple(left_out))


class BadRecordError(DataError):
    """A record of a file that cannot be used, while others might."""


def located(error: PalimpsestError, where: str) -> BadRecordError:
    """The same error, naming the place in the file first and the field after it."""
    field = error.where if error.where and error.where.startswith("field") else None
    return BadRecordError(
        error.problem,
        expected=error.expected,
        found=error.found,
        where=f"{where}, {field}" if field else where,
        remedy=error.remedy or "correct the record or remove it",
    )


def _reason(lost: str | DataError) -> str:
    """Why a question is not asked, as a part of a sentence."""
    if isinstance(lost, str):
        return lost
    text = lost.problem.rstrip(".")
    return text[:1].lower() + text[1:] if text.startswith(("The ", "A ")) else text


def _all_in_one(bad: list[DataError]) -> DataError:
    """The first error; the others by place and problem, so that a file is corrected in one go."""
    first, others = bad[0], bad[1:]
    if not others:
        return first
    shown = some_of([f"{error.where}: {error.problem}" for error in others], most=SHOWN, between="; ")
    return BadRecordError(
        first.problem,
        expected=first.expected,
        found=first.found,
        where=first.where,
        remedy=f"{first.remedy}; then the other {len(others)} record(s) that cannot be used: {shown}",
    )


def _with_subject(request: EditRequest, where: str, found: list[str], missing: list[str]) -> EditRequest:
    subject = find_subject(request.prompt)
    if subject is None:
        missing.append(where)
        return request
    found.append(f"{where} {subject!r}")
    return replace(request, subject=subject)


def _repetition(request: EditRequest, places: Mapping[str, tuple[str, EditRequest]]) -> str | None:
    """The reason to skip an exact repetition. Raises `DataError` for another edit of the same id."""
    earlier = places.get(request.id)
    if earlier is None:
        return None
    where, other = earlier
    if other == request:
        return f"repeats the record at {where}"
    raise DataError(
        "Two records have the same id.",
        expected="a different `id` for every edit, or one record for each edit",
        found=f"{request.id!r}, already at {where}",
        where="field `id`",
        remedy="rename one of them, or put the probes of both into one record",
    )


def _subject_notes(found: list[str], missing: list[str]) -> list[str]:
    notes = []
    if found:
        notes.append(f"The subject was not given and was found in the prompt of {_listed(found)}.")
    if missing:
        notes.append(f"No subject is given or could be found for {_listed(missing)}; methods that locate need one.")
    return notes


def _left_out_notes(left_out: list[Skipped]) -> list[str]:
    places: dict[str, list[str]] = {}
    for one in left_out:
        places.setdefault(one.reason, []).append(one.where)
    return [f"Left out, {reason}: {len(w)} question(s), the first at {w[0]}." for reason, w in places.items()]


def _listed(places: list[str]) -> str:
    return f"{len(places)} record(s): {some_of(places, most=SHOWN)}"
