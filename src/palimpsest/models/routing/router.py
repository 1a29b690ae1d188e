"""Who answers a prompt: the model itself, the model with another text before it, or another model.

The decision is taken once for each prompt and never for a token of the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from palimpsest.models.generation import Until
from palimpsest.models.reader import Reader
from palimpsest.models.routing import prefixes
from palimpsest.models.routing.mixing import Mixed, mixed_scores, mixed_texts
from palimpsest.models.scores import TargetScore
from palimpsest.models.tokens import PaddingSide


@dataclass(frozen=True, eq=False)
class Route:
    """Where a prompt goes instead.

    Arguments:
        prompt: the text that is read in its place.
        model: the model that reads it; `None` for the one that was asked.
        weight: its share of a mixture of probabilities with the model's own for the prompt as it was asked.
    """

    prompt: str
    model: Reader | None = None
    weight: float = 1.0


Router = Callable[[Sequence[str]], Sequence[Route | None]]
"""From prompts to where each of them goes; `None` leaves a prompt to whatever lies below."""


def routes(model: Reader, prompts: Sequence[str]) -> list[Route]:
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
    model: Reader,
    prompts: Sequence[str],
    targets: Sequence[str],
    *,
    forward_batch_size: int,
    side: PaddingSide,
) -> list[TargetScore]:
    """`EditableModel.score` under routers."""

    def read(group: _Group, texts: list[str]) -> list[TargetScore]:
        wanted = [targets[row] for row in group.rows]
        if group.begins_alike:
            return prefixes.score(group.reader, texts, wanted, forward_batch_size=forward_batch_size)
        return group.reader.score(texts, wanted, forward_batch_size=forward_batch_size, side=side)

    def mix(group: _Group, pairs: list[Mixed]) -> list[TargetScore]:
        return mixed_scores(model, group.reader, pairs, [targets[row] for row in group.rows], forward_batch_size)

    return _answered(model, prompts, read, mix)


def generate(
    model: Reader,
    prompts: Sequence[str],
    max_new_tokens: int,
    until: Until,
    *,
    forward_batch_size: int,
) -> list[str]:
    """`EditableModel.generate` under routers."""

    def read(group: _Group, texts: list[str]) -> list[str]:
        if group.begins_alike:
            return prefixes.generate(group.reader, texts, max_new_tokens, until, forward_batch_size=forward_batch_size)
        found: list[str] = group.reader.generate(
            texts, max_new_tokens=max_new_tokens, until=until, forward_batch_size=forward_batch_size
        )
        return found

    def mix(group: _Group, pairs: list[Mixed]) -> list[str]:
        return mixed_texts(model, group.reader, pairs, max_new_tokens, until, forward_batch_size)

    return _answered(model, prompts, read, mix)


Answer = TypeVar("Answer")


def _answered(
    model: Reader,
    prompts: Sequence[str],
    read: Callable[[_Group, list[str]], list[Answer]],
    mix: Callable[[_Group, list[Mixed]], list[Answer]],
) -> list[Answer]:
    """Returns the answers of each prompt's reader, in the order of the prompts.

    Arguments:
        read: answers texts by one model.
        mix: answers pairs of texts by the mixture of the model and another.
    """
    chosen = routes(model, prompts)
    found: dict[int, Answer] = {}
    for group in _groups(model, prompts, chosen):
        with model.weights.without_routers(), group.reader.weights.without_routers():
            if group.is_mixed:
                answers = mix(
                    group, [Mixed(prompts[row], chosen[row].prompt, chosen[row].weight) for row in group.rows]
                )
            else:
                answers = read(group, [chosen[row].prompt for row in group.rows])
        found.update(zip(group.rows, answers, strict=True))
    return [found[row] for row in range(len(chosen))]


@dataclass(frozen=True)
class _Group:
    """Prompts that one model answers in one way.

    Arguments:
        reader: the model.
        is_mixed: whether its answers are mixed with those of the model that was asked.
        begins_alike: whether texts long enough to be read once were put before the prompts, often the same ones.
        rows: the prompts' numbers.
    """

    reader: Reader
    is_mixed: bool
    begins_alike: bool
    rows: list[int] = field(default_factory=list)


def _groups(model: Reader, prompts: Sequence[str], chosen: Sequence[Route]) -> list[_Group]:
    shares = prefixes.can_share(model)
    groups: dict[tuple[int, bool, bool], _Group] = {}
    for row, (prompt, route) in enumerate(zip(prompts, chosen, strict=True)):
        reader, is_mixed = route.model or model, route.weight < 1.0
        # A text put before a prompt has no more tokens than letters.
        added = len(route.prompt) - len(prompt)
        begins_alike = shares and reader is model and not is_mixed and added >= prefixes.LEAST
        group = groups.setdefault((id(reader), is_mixed, begins_alike), _Group(reader, is_mixed, begins_alike))
        group.rows.append(row)
    return list(groups.values())
