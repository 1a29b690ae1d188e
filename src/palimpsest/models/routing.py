"""Who answers a prompt: the model itself, the model with another text before it, or another model.

The decision is taken once for each prompt and never for a token of the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from palimpsest.models import prefixes
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
    chosen = routes(model, prompts)
    found: dict[int, TargetScore] = {}
    for group in _groups(model, prompts, chosen):
        reader, rows = group.reader, group.rows
        texts, wanted = [chosen[row].prompt for row in rows], [targets[row] for row in rows]
        with model.weights.without_routers(), reader.weights.without_routers():
            if group.is_mixed:
                pairs = [Mixed(prompts[row], chosen[row].prompt, chosen[row].weight) for row in rows]
                scores = mixed_scores(model, reader, pairs, wanted, forward_batch_size)
            elif group.begins_alike:
                scores = prefixes.score(reader, texts, wanted, forward_batch_size=forward_batch_size)
            else:
                scores = reader.score(texts, wanted, forward_batch_size=forward_batch_size, side=side)
        found.update(zip(rows, scores, strict=True))
    return [found[row] for row in range(len(chosen))]


def generate(
    model: EditableModel, prompts: Sequence[str], *, max_new_tokens: int, forward_batch_size: int
) -> list[str]:
    """`EditableModel.generate` under routers."""
    chosen = routes(model, prompts)
    found: dict[int, str] = {}
    options = {"max_new_tokens": max_new_tokens, "forward_batch_size": forward_batch_size}
    for group in _groups(model, prompts, chosen):
        reader, rows = group.reader, group.rows
        texts = [chosen[row].prompt for row in rows]
        with model.weights.without_routers(), reader.weights.without_routers():
            if group.is_mixed:
                pairs = [Mixed(prompts[row], chosen[row].prompt, chosen[row].weight) for row in rows]
                answers = mixed_texts(model, reader, pairs, max_new_tokens, forward_batch_size)
            elif group.begins_alike:
                answers = prefixes.generate(reader, texts, **options)
            else:
                answers = reader.generate(texts, **options)
        found.update(zip(rows, answers, strict=True))
    return [found[row] for row in range(len(chosen))]


@dataclass(frozen=True)
class _Group:
    """Prompts that one model answers in one way.

    Arguments:
        reader: the model.
        is_mixed: whether its answers are mixed with those of the model that was asked.
        begins_alike: whether texts were put before the prompts, often the same ones.
        rows: the prompts' numbers.
    """

    reader: EditableModel
    is_mixed: bool
    begins_alike: bool
    rows: list[int] = field(default_factory=list)


def _groups(model: EditableModel, prompts: Sequence[str], chosen: Sequence[Route]) -> list[_Group]:
    shares = prefixes.can_share(model)
    groups: dict[tuple[int, bool, bool], _Group] = {}
    for row, (prompt, route) in enumerate(zip(prompts, chosen, strict=True)):
        reader, is_mixed = route.model or model, route.weight < 1.0
        begins_alike = shares and reader is model and not is_mixed and route.prompt != prompt
        group = groups.setdefault((id(reader), is_mixed, begins_alike), _Group(reader, is_mixed, begins_alike))
        group.rows.append(row)
    return list(groups.values())
