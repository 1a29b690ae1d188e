"""Who answers a prompt: the model itself, the model with another text before it, or another model.

The decision is taken once for each prompt and never for a token of the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from palimpsest.models.mixing import Mixed, mixed_scores, mixed_texts
from palimpsest.models.tokens import PaddingSide

if TYPE_CHECKING:
    from palimpsest.models.editable import EditableModel
    from palimpsest.models.scores import TargetScore


@dataclass(frozen=True, eq=False)
class Route:
    """Where a prompt goes instead.

    Arguments:
        prompt: the text that is read in its place.
        model: the model that reads it; `None` for the one that was asked.
        weight: its share of a mixture of probabilities with the model's own for the prompt as it was asked.
    """

    prompt: str
    model: EditableModel | None = None
    weight: float = 1.0


Router = Callable[[Sequence[str]], Sequence[Route | None]]
"""From prompts to where each of them goes; `None` leaves a prompt to whatever lies below."""


def routes(model: EditableModel, prompts: Sequence[str]) -> list[Route]:
    """Where each prompt goes: the uppermost router that takes it decides; without one it is the model's own."""
    found: list[Route | None] = [None] * len(prompts)
    for router in model.weights.routers:
        left = [index for index, route in enumerate(found) if route is None]
        if not left:
            break
        for index, route in zip(left, router([prompts[index] for index in left]), strict=True):
            found[index] = route
    return [Route(prompt) if route is None else route for prompt, route in zip(prompts, found, strict=True)]


def score(
    model: EditableModel,
    prompts: Sequence[str],
    targets: Sequence[str],
    *,
    forward_batch_size: int,
    side: PaddingSide,
) -> list[TargetScore]:
    """`EditableModel.score` under routers."""

    def read(reader: EditableModel, texts: list[str], rows: list[int]) -> list[TargetScore]:
        wanted = [targets[row] for row in rows]
        return reader.score(texts, wanted, forward_batch_size=forward_batch_size, side=side)

    def mix(reader: EditableModel, pairs: list[Mixed], rows: list[int]) -> list[TargetScore]:
        return mixed_scores(model, reader, pairs, [targets[row] for row in rows], forward_batch_size)

    return _answered(model, prompts, read, mix)


def generate(
    model: EditableModel, prompts: Sequence[str], *, max_new_tokens: int, forward_batch_size: int
) -> list[str]:
    """`EditableModel.generate` under routers."""

    def read(reader: EditableModel, texts: list[str], _rows: list[int]) -> list[str]:
        return reader.generate(texts, max_new_tokens=max_new_tokens, forward_batch_size=forward_batch_size)

    def mix(reader: EditableModel, pairs: list[Mixed], _rows: list[int]) -> list[str]:
        return mixed_texts(model, reader, pairs, max_new_tokens, forward_batch_size)

    return _answered(model, prompts, read, mix)


Answer = TypeVar("Answer")


def _answered(
    model: EditableModel,
    prompts: Sequence[str],
    read: Callable[[EditableModel, list[str], list[int]], list[Answer]],
    mix: Callable[[EditableModel, list[Mixed], list[int]], list[Answer]],
) -> list[Answer]:
    """What each prompt's reader says, in the order of the prompts.

    Arguments:
        read: answers texts by one model; told the numbers of their prompts.
        mix: answers pairs of texts by the mixture of the model and another.
    """
    chosen = routes(model, prompts)
    found: dict[int, Answer] = {}
    for reader, rows, is_mixed in _by_reader(model, chosen):
        with model.weights.without_routers(), reader.weights.without_routers():
            if is_mixed:
                answers = mix(
                    reader, [Mixed(prompts[row], chosen[row].prompt, chosen[row].weight) for row in rows], rows
                )
            else:
                answers = read(reader, [chosen[row].prompt for row in rows], rows)
        found.update(zip(rows, answers, strict=True))
    return [found[row] for row in range(len(chosen))]


def _by_reader(model: EditableModel, chosen: Sequence[Route]) -> list[tuple[EditableModel, list[int], bool]]:
    """Each model that has prompts to read, with their numbers, and whether its answers are mixed with the model's."""
    groups: dict[tuple[int, bool], tuple[EditableModel, list[int], bool]] = {}
    for row, route in enumerate(chosen):
        reader, is_mixed = route.model or model, route.weight < 1.0
        groups.setdefault((id(reader), is_mixed), (reader, [], is_mixed))[1].append(row)
    return list(groups.values())
