"""What commands that ask a model have in common where it thinks before it answers."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from palimpsest.errors import ConfigError
from palimpsest.wording import is_unfinished, thought_of

_SHOWN = 400

ThinkingOption = Annotated[
    bool | None,
    typer.Option(
        "--thinking/--no-thinking",
        help="Let the model think before it answers, in its chat template; what follows the thought counts. As the"
        " patch was made, or no, if left out.",
        show_default=False,
    ),
]
ThinkingTokensOption = Annotated[
    int | None,
    typer.Option(
        "--thinking-tokens",
        min=1,
        help="Longest thought, in tokens; one that does not end within them has no answer. Thinks.",
        show_default="1024",
    ),
]


def chosen_thinking(
    thinking: bool | None, tokens: int | None, *, chat: bool | None = None, recorded: bool = False
) -> bool | int | None:
    """How long a model may think, as `load` takes it. Raises `ConfigError` for options that contradict each other.

    Arguments:
        chat: what `--chat` says.
        recorded: whether leaving `--chat` out is something else than `--no-chat`.
    """
    wanted = "--thinking-tokens" if tokens is not None else "--thinking" if thinking else None
    against = "--no-thinking" if thinking is False else "--no-chat" if recorded and chat is False else None
    if wanted and against and not (wanted == "--thinking" and against == "--no-thinking"):
        raise ConfigError(
            "Two options contradict each other.",
            expected=f"{wanted} or {against}",
            found=f"{wanted} and {against}",
            where="the command line",
            remedy=f"leave {against} out to let the model think, or {wanted} for an answer at once",
        )
    return thinking if tokens is None else tokens


def answer_words(text: str | None) -> str:
    """An answer for a table; why there is none where the thought did not end, or the model ends its text at once."""
    if is_unfinished(text):
        return "(the thought did not end; see --thinking-tokens)"
    return text or ("" if text is None else "(nothing)")


def thoughts(before: str | None, after: str | None) -> dict[str, Any]:
    """The thoughts before two answers, for JSON; empty where there were none."""
    found = {"before": _described(before), "after": _described(after)}
    return {"thoughts": {name: one for name, one in found.items() if one is not None}} if any(found.values()) else {}


def thought_lines(prompt: str, before: str | None, after: str | None) -> list[str]:
    """The same for people."""
    lines = []
    for name, text in (("before", before), ("after", after)):
        thought = thought_of(text)
        if thought is not None:
            shown = " ".join(thought.split())
            cut = f"{shown[:_SHOWN]}..." if len(shown) > _SHOWN else shown or "(nothing)"
            lines.append(f"thought{'' if after is None else f' {name}'}, {prompt}: {cut}")
    return lines


def _described(text: str | None) -> dict[str, Any] | None:
    thought = thought_of(text)
    return None if thought is None else {"text": thought, "is_unfinished": is_unfinished(text)}
