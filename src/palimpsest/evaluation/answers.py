"""What the base model says, asked once however many methods are compared."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from palimpsest.errors import ConfigError
from palimpsest.evaluation.scoring import Observation
from palimpsest.models.scores import TargetScore
from palimpsest.provenance import digest

if TYPE_CHECKING:
    from palimpsest.models.editable import EditableModel

Pair = tuple[str, str]


class BaseAnswers:
    """Generations and target scores of one unedited model, kept in memory.

    One object can be handed to several `evaluate` calls on the same model; each prompt, and each target after
    a prompt, is then computed once. Raises `ConfigError` when it is used with another model.
    """

    def __init__(self) -> None:
        self._model: str | None = None
        self._generated: dict[str, str] = {}
        self._scores: dict[Pair, TargetScore] = {}

    def belong_to(self, model: EditableModel, max_new_tokens: int) -> None:
        """Binds the answers to a model and a length of generation, or checks that they are bound to these.

        Raises `ConfigError` when they belong to another.
        """
        chat = [model.chat.to_dict()] if model.chat is not None else []
        identity = digest([model.fingerprint(), model.weights.labels, max_new_tokens, *chat])
        if self._model not in (None, identity):
            raise ConfigError(
                "Base answers belong to another model.",
                expected="one BaseAnswers object for each model (with its patches) and each max_new_tokens",
                found=f"model {model.name!r} with other weights, patches, chat or length of generation",
                remedy="make a new BaseAnswers() for it",
            )
        self._model = identity

    @property
    def num_known(self) -> int:
        """How many continuations and scores are known."""
        return len(self._generated) + len(self._scores)

    def generate(self, model: EditableModel, prompts: Iterable[str], **options: Any) -> None:
        """Asks for the continuations of all prompts that are not known yet, in one batched call."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._generated]
        if missing:
            self._generated.update(zip(missing, model.generate(missing, **options), strict=True))

    def score(self, model: EditableModel, pairs: Iterable[Pair], *, forward_batch_size: int) -> None:
        """Scores all (prompt, target) pairs that are not known yet, in one batched call."""
        missing = [pair for pair in dict.fromkeys(pairs) if pair not in self._scores]
        if missing:
            prompts, targets = zip(*missing, strict=True)
            scores = model.score(prompts, targets, forward_batch_size=forward_batch_size)
            self._scores.update(zip(missing, scores, strict=True))

    def generated(self, prompt: str) -> str | None:
        """The continuation of a prompt, if it is known."""
        return self._generated.get(prompt)

    def observation(self, prompt: str, targets: Iterable[str]) -> Observation:
        """What the base model says at a prompt, as far as it is known."""
        known = {text: self._scores[prompt, text] for text in targets if (prompt, text) in self._scores}
        return Observation(self._generated.get(prompt), known)

    def to_dict(self) -> dict[str, Any]:
        """Everything known, JSON-ready, for `absorb`."""
        scores = [
            [prompt, target, score.log_probs, score.predicted, score.matches]
            for (prompt, target), score in self._scores.items()
        ]
        return {"model": self._model, "generated": self._generated, "scores": scores}

    def absorb(self, stored: dict[str, Any]) -> None:
        """Takes over what `to_dict` gave, when it is of the same model; otherwise nothing."""
        if stored["model"] != self._model:
            return
        self._generated = {**stored["generated"], **self._generated}
        for prompt, target, log_probs, predicted, matches in stored["scores"]:
            score = TargetScore(tuple(log_probs), tuple(predicted), tuple(matches))
            self._scores.setdefault((prompt, target), score)
