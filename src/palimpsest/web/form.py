"""What a visitor fills in: one fact with its tests, of bounded size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from palimpsest.errors import DataError
from palimpsest.requests import EditRequest, Probe

LONGEST_TEXT = 2_000
"""Characters of one prompt or answer."""
MOST_LINES = 20
"""Prompts that are asked at once, and rephrasings or neighbours of one fact."""


@dataclass(frozen=True)
class EditForm:
    """The form, as it was filled in; see `requests.EditRequest`.

    Arguments:
        rephrasings: other prompts that should get the new answer.
        neighbours: prompts whose answers should stay.
    """

    prompt: str
    target_new: str
    subject: str = ""
    target_old: str = ""
    rephrasings: Sequence[str] = ()
    neighbours: Sequence[str] = ()

    def request(self) -> EditRequest:
        """The edit with its probes. Raises `DataError` for what cannot be edited, or is too long or too much."""
        for what, text in (("prompt", self.prompt), ("new answer", self.target_new), ("old answer", self.target_old)):
            require_short(text, what)
        probes = [
            *(Probe("generality", prompt, self.target_new) for prompt in lines_of(self.rephrasings, "rephrasings")),
            *(Probe("locality.neighborhood", prompt) for prompt in lines_of(self.neighbours, "neighbours")),
        ]
        return EditRequest(
            self.prompt,
            self.target_new,
            subject=self.subject.strip() or None,
            target_old=self.target_old.strip() or None,
            probes=tuple(probes),
        )


def lines_of(texts: Sequence[str], what: str) -> list[str]:
    """Texts that are not blank. Raises `DataError` for too many, and for one that is too long."""
    found = [text.strip() for text in texts if text.strip()]
    if len(found) > MOST_LINES:
        raise DataError(f"There are too many {what}.", expected=f"at most {MOST_LINES} lines", found=str(len(found)))
    for text in found:
        require_short(text, what)
    return found


def require_short(text: str, what: str) -> None:
    """Raises `DataError` for a text that is too long."""
    if len(text) > LONGEST_TEXT:
        raise DataError(
            f"The {what} is too long.",
            expected=f"at most {LONGEST_TEXT:,} characters",
            found=f"{len(text):,}",
            where=f"the page, {what}",
        )
