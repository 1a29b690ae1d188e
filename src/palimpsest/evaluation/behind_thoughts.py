"""How probable answers are where a model thinks first: behind its own thought about each prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from palimpsest.evaluation.answers import Pair
from palimpsest.stopwatch import Progress
from palimpsest.wording import Reply

if TYPE_CHECKING:
    from palimpsest.models import EditableModel

_TOGETHER = 512


def answer_log_probs(model: EditableModel, asked: Sequence[Pair], progress: Progress) -> list[float | None]:
    """The mean log-probability of each answer behind its prompt, and behind the thought where the model thinks first.

    Each pair is computed once, and each prompt is thought about once. `None` where that thought did not end.

    Arguments:
        asked: prompts with answers.
    """
    distinct = list(dict.fromkeys(asked))
    found: dict[Pair, float | None] = {}
    thinks = model.chat is not None and model.chat.thinking is not None
    for pairs in _by_prompt(distinct) if thinks else _in_chunks(distinct):
        progress("assessing", len(found), len(distinct))
        prompts, answers = zip(*pairs, strict=True)
        if not thinks:
            scores = model.score(prompts, answers)
            found.update(zip(pairs, (score.mean_log_prob for score in scores), strict=True))
            continue
        found.update(dict.fromkeys(pairs))
        reply = model.generate(prompts[0])
        if isinstance(reply, Reply) and reply.is_unfinished:
            continue
        written = reply.written if isinstance(reply, Reply) else ""
        with model.in_chat(model.chat.behind(written) if model.chat is not None else None):
            scores = model.score(prompts, answers)
        found.update(zip(pairs, (score.mean_log_prob for score in scores), strict=True))
    progress("assessing", len(distinct), len(distinct))
    return [found[pair] for pair in asked]


def _in_chunks(pairs: Sequence[Pair]) -> Iterator[Sequence[Pair]]:
    yield from (pairs[start : start + _TOGETHER] for start in range(0, len(pairs), _TOGETHER))


def _by_prompt(pairs: Sequence[Pair]) -> Iterator[Sequence[Pair]]:
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair[0], []).append(pair)
    yield from groups.values()
