"""Texts that can be used: not blank, and whole."""

from __future__ import annotations

from palimpsest.errors import DataError

_SHOWN = 80


def require_text(value: object, name: str, *, where: str) -> None:
    """Raises `DataError` for what is no text, for a blank one, and for half a character.

    A lone surrogate is half a character: a command line makes one of every byte that is not UTF-8, JSON of an escape
    without its second half. No tokenizer reads it and no file can hold it.

    Arguments:
        value: what was given.
        name: the field.
        where: the place to look, for the message.
    """
    require_whole(value, name, where=where)
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"The field `{name}` is {'blank' if isinstance(value, str) else 'not text'}.",
            expected="text with at least one visible character",
            found=repr(value),
            where=where,
        )


def require_whole(value: object, name: str, *, where: str) -> None:
    """Raises `DataError` for what is neither text nor nothing, and for half a character; a blank text is fine.

    Arguments: see `require_text`.
    """
    if value is None:
        return
    if not isinstance(value, str):
        raise DataError(
            f"The field `{name}` is not text.", expected="text", found=repr(value)[:_SHOWN], where=printed(where)
        )
    if value.isascii():
        return
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"The field `{name}` is not whole text.",
            expected="text that UTF-8 can hold",
            found=f"half a character, \\u{ord(value[error.start]):04x}, in {printed(value)[:_SHOWN]!r}",
            where=printed(where),
            remedy="save the text again as UTF-8, or type it in a terminal that is set to UTF-8",
        ) from error


def printed(text: str) -> str:
    """A text with half characters as question marks, for messages."""
    return text.encode("utf-8", "replace").decode()
