"""Answers of the base model, computed once for all compared methods."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from palimpsest.errors import ConfigError, DataError
from palimpsest.evaluation.scoring import Observation
from palimpsest.files import FileKind, put_aside
from palimpsest.models import AnswerRoom, TargetScore, written_answers
from palimpsest.provenance import digest
from palimpsest.wording import Reply

if TYPE_CHECKING:
    from palimpsest.models import EditableModel

Pair = tuple[str, str]
FORMAT_VERSION = 2
"""Of what is stored; base answers of another version are not taken over."""
_ANSWERS = FileKind(DataError, "A base model's answers cannot be read.", expected="what an evaluation wrote")


class BaseAnswers:
    """Generations and target scores of one unedited model, kept in memory.

    One object can be handed to several `evaluate` calls on the same model; each prompt, and each target after
    a prompt, is then computed once. Raises `ConfigError` when it is used with another model.
    """

    def __init__(self) -> None:
        self._model: str | None = None
        self._generated: dict[str, dict[str, str]] = {}
        """By how much was written, then by prompt: a longer text is another one."""
        self._scores: dict[Pair, TargetScore] = {}
        self._notes: list[str] = []

    def belong_to(self, model: EditableModel) -> None:
        """Binds the answers to a model, or checks that they are bound to it.

        Raises `ConfigError` when they belong to another.
        """
        chat = [model.chat.to_dict()] if model.chat is not None else []
        identity = digest([FORMAT_VERSION, model.fingerprint(), model.weights.labels, *chat])
        if self._model not in (None, identity):
            raise ConfigError(
                "Base answers belong to another model.",
                expected="one BaseAnswers object for each model (with its patches)",
                found=f"model {model.name!r} with other weights, patches or chat",
                remedy="make a new BaseAnswers() for it",
            )
        self._model = identity

    @property
    def num_known(self) -> int:
        """How many continuations and scores are known."""
        return sum(map(len, self._generated.values())) + len(self._scores)

    def generate(
        self, model: EditableModel, prompts: Iterable[str], room: AnswerRoom, *, forward_batch_size: int
    ) -> None:
        """Asks for the continuations of all prompts that are not known yet, in one batched call."""
        known = self._generated.setdefault(_name(room), {})
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
        if missing:
            texts = written_answers(model, missing, room, forward_batch_size=forward_batch_size)
            known.update(zip(map(str, missing), texts, strict=True))

    def score(self, model: EditableModel, pairs: Iterable[Pair], *, forward_batch_size: int) -> None:
        """Scores all (prompt, target) pairs that are not known yet, in one batched call."""
        missing = [pair for pair in dict.fromkeys(pairs) if pair not in self._scores]
        if missing:
            prompts, targets = zip(*missing, strict=True)
            scores = model.score(prompts, targets, forward_batch_size=forward_batch_size)
            self._scores.update(zip(missing, scores, strict=True))

    def generated(self, prompt: str, room: AnswerRoom) -> str | None:
        """The continuation of a prompt, if it is known."""
        return self._generated.get(_name(room), {}).get(prompt)

    def observation(self, prompt: str, targets: Iterable[str], room: AnswerRoom, *, is_chat: bool) -> Observation:
        """Returns the known answers of the base model at a prompt."""
        known = {text: self._scores[prompt, text] for text in targets if (prompt, text) in self._scores}
        return Observation(self.generated(prompt, room), known, is_chat)

    def to_dict(self) -> dict[str, Any]:
        """Everything known, JSON-ready, for `absorb`."""
        scores = [
            [prompt, target, score.log_probs, score.predicted, score.matches]
            for (prompt, target), score in self._scores.items()
        ]
        thoughts = {
            room: {
                prompt: (text.thought, text.is_unfinished) for prompt, text in texts.items() if isinstance(text, Reply)
            }
            for room, texts in self._generated.items()
        }
        return {"model": self._model, "generated": self._generated, "thoughts": thoughts, "scores": scores}

    def take_notes(self) -> list[str]:
        """What `absorb` put aside since it was last asked, as sentences."""
        taken, self._notes = self._notes, []
        return taken

    def absorb(self, file: Path) -> None:
        """Takes over what a file holds of `to_dict`, when it is of the same model; otherwise nothing.

        A file that is not there has nothing; a damaged one is put aside with a note, and the model is asked again.
        """
        if not file.exists():
            return
        try:
            stored = _ANSWERS.record(file, _Answers)
        except DataError as error:
            put_aside(file)
            self._notes.append(f"Damaged base answers were put aside and asked for again: {file}, {error.found}.")
            return
        if stored.model != self._model:
            return
        for room, texts in stored.generated.items():
            for prompt, (thought, is_unfinished) in stored.thoughts.get(room, {}).items():
                texts[prompt] = Reply(texts.get(prompt, ""), thought, is_unfinished=is_unfinished)
            self._generated[room] = {**texts, **self._generated.get(room, {})}
        for prompt, target, log_probs, predicted, matches in stored.scores:
            self._scores.setdefault((prompt, target), TargetScore(log_probs, predicted, matches))


class _Answers(BaseModel):
    """The dictionary of `BaseAnswers.to_dict`."""

    model: str | None
    generated: dict[str, dict[str, str]]
    thoughts: dict[str, dict[str, tuple[str, bool]]] = Field(default_factory=dict)
    scores: list[tuple[str, str, tuple[float, ...], tuple[int, ...], tuple[bool, ...]]]


def _name(room: AnswerRoom) -> str:
    return f"{room.tokens}/{room.characters}"
