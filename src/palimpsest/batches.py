"""Several requests at once: no two may contradict each other, and duplicates are edited once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from palimpsest.errors import DataError
from palimpsest.requests import EditRequest, normalise, require_filled


def check_requests(requests: Sequence[EditRequest], *, needs_subject: bool, needs_old_answer: bool) -> None:
    """Checks a batch before anything is computed.

    Raises `DataError` for two edits that contradict each other (one prompt, two answers), for a template without a
    subject, and for a missing subject or old answer where they are needed.
    """
    answers: dict[str, EditRequest] = {}
    by_id: dict[str, EditRequest] = {}
    for request in requests:
        require_filled(request)
        if needs_subject:
            request.subject_span()
        if needs_old_answer:
            request.reversed_to_old()
        namesake = by_id.setdefault(request.id, request)
        if (namesake.prompt, namesake.target_new) != (request.prompt, request.target_new):
            raise DataError(
                "Two different edits have one id.",
                expected="an id of its own for each edit, or none",
                found=f"{namesake.prompt!r} and {request.prompt!r}",
                where=f"id {request.id!r}",
            )
        earlier = answers.setdefault(normalise(request.prompt), request)
        if earlier.target_new != request.target_new:
            raise DataError(
                "Two edits of one batch contradict each other.",
                expected="one answer for one prompt",
                found=f"{earlier.target_new!r} (edit {earlier.id}) and {request.target_new!r} (edit {request.id})",
                where=f"prompt {request.prompt!r}",
                remedy="remove one of them, or edit them one after another with the sequential protocol",
            )


def originals(requests: Iterable[EditRequest]) -> list[EditRequest]:
    """For each request the first that says exactly the same, (prompt, target_new, target_old): often itself."""
    seen: dict[tuple[str, str, str | None], EditRequest] = {}
    return [seen.setdefault((normalise(one.prompt), one.target_new, one.target_old), one) for one in requests]


def without_duplicates(requests: Iterable[EditRequest]) -> list[EditRequest]:
    """The requests without exact repetitions, first ones kept; see `originals`."""
    return list({id(one): one for one in originals(requests)}.values())
