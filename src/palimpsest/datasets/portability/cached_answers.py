"""A folder of a chat model's answers, so that nothing is asked twice."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsest.errors import OutputError
from palimpsest.files import content_of, decoded, parse_json, write_json
from palimpsest.provenance import digest

if TYPE_CHECKING:
    from palimpsest.datasets.portability.asking import Message


class CachedAnswers:
    """Answers of one chat model by what it was asked.

    Arguments:
        folder: where they are; `None` keeps nothing.
        identity: everything that determines the model's answers, JSON-ready.
        key: what else an answer is filed under, such as the version of the question.
    """

    def __init__(self, folder: Path | None, identity: dict[str, Any], key: Sequence[Any] = ()) -> None:
        self.folder = folder
        self._identity = identity
        self._key = list(key)

    def read(self, messages: Sequence[Message]) -> str | None:
        """The answer to a question; `None` if there is none, and for what another program or a full disk left."""
        file = self._file(messages)
        if file is None or not file.exists():
            return None
        try:
            answer = parse_json(decoded(content_of(file)))["answer"]
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return answer if isinstance(answer, str) else None

    def write(self, messages: Sequence[Message], answer: str) -> None:
        """Keeps an answer. One that cannot be kept is asked for again another time."""
        file = self._file(messages)
        if file is not None:
            with suppress(OutputError):
                write_json(file, {"identity": self._identity, "answer": answer})

    def _file(self, messages: Sequence[Message]) -> Path | None:
        key = digest([*self._key, self._identity, [message.to_dict() for message in messages]])
        return None if self.folder is None else self.folder / key[:2] / f"{key}.json"
