"""Errors that a person can act on: what was expected, what was found, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class PalimpsestError(Exception):
    """Base of every error this package raises for bad input or an unmet precondition.

    Arguments:
        problem: one sentence that says what is wrong.
        expected: what would have been right.
        found: what was there instead.
        where: file and line, field, tensor, option: the place to look.
        remedy: what to do about it.

    The command line prints these five as one block and exits with code 2.
    """

    def __init__(
        self,
        problem: str,
        *,
        expected: str | None = None,
        found: str | None = None,
        where: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.problem = problem
        self.expected = expected
        self.found = found
        self.where = where
        self.remedy = remedy
        super().__init__(problem)

    def details(self) -> list[tuple[str, str]]:
        """The (label, text) pairs that are present, in reading order."""
        pairs = [
            ("expected", self.expected),
            ("found", self.found),
            ("where", self.where),
            ("to do", self.remedy),
        ]
        return [(label, text) for label, text in pairs if text]

    def __str__(self) -> str:
        return "\n".join([self.problem, *(f"  {label + ':':<10}{text}" for label, text in self.details())])


class ConfigError(PalimpsestError):
    """An unknown or invalid option, name or combination of them."""


class DataError(PalimpsestError):
    """A record, file or data set that cannot be used as given."""


class ModelError(PalimpsestError):
    """A model that cannot be loaded, has no known layout, or cannot do what was asked."""


class PatchError(PalimpsestError):
    """A patch that cannot be read, written, combined or applied to this model."""


class OutputError(PalimpsestError):
    """A place that cannot be written to: it exists already, or the disk refuses."""


def later_version(kind: type[PalimpsestError], what: str, found: object, known: int, *, where: str) -> PalimpsestError:
    """The error for something that a later version of this package has written.

    Arguments:
        kind: the error's class.
        what: what it is: `"patch"`.
        found: its format.
        known: the last format that this version knows.
        where: its file.
    """
    return kind(
        f"The {what} was written by a later version.",
        expected=f"format {known} or earlier",
        found=f"format {found}",
        where=where,
        remedy="update palimpsest",
    )


def near_matches(name: str, known: Iterable[str], *, limit: int = 3) -> list[str]:
    """The known names that look most like `name`, best first."""
    # Of texts whose lengths differ more, less than half can agree: what is no name at all is not compared.
    by_folded = {one.casefold(): one for one in known if len(name) <= 3 * len(one)}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=limit, cutoff=0.5) if by_folded else []
    contained = [folded for folded in by_folded if name.casefold() in folded and folded not in close]
    return [by_folded[folded] for folded in (close + contained)[:limit]]


def some_of(names: Sequence[str], *, most: int = 3, between: str = ", ") -> str:
    """The first of many names for an error's text, and how many more there are: `a, b, c and 4 more`."""
    rest = len(names) - most
    return between.join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def unknown_name(what: str, name: str, known: Iterable[str], *, where: str | None = None) -> ConfigError:
    """A ConfigError for a name that is not in a list, with the near matches as the remedy."""
    names = sorted(known)
    close = near_matches(name, names)
    return ConfigError(
        f"There is no {what} named {name!r}.",
        expected=f"one of {', '.join(names)}" if names else f"a {what} (none is registered)",
        found=repr(name),
        where=where,
        remedy=f"did you mean {' or '.join(map(repr, close))}?" if close else None,
    )
