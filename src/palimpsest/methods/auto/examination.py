"""Asks a model the trials of many facts, before and after, in a few batched calls."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, takewhile

from palimpsest.answers import gives_new, is_reply_to, new_names
from palimpsest.methods.auto.trials import Trial, asking_for_facts
from palimpsest.methods.checking import text_moved
from palimpsest.models import (
    AnswerRoom,
    EditableModel,
    TargetScore,
    next_by_prompt,
    own_repetitions,
    replies_to,
    written_answers,
)
from palimpsest.wording import is_degenerate

_FIRST_TOKENS = 4
"""Of an answer that has to stay."""
_IN_A_REPLY = 16
"""The same in a reply, which may repeat the question first."""
_SURE = math.log(0.5)
"""Log-probability from which on a token is part of an answer: what is less sure changes with any change."""


@dataclass(frozen=True)
class Verdict:
    """How one fact stands.

    Arguments:
        says: whether the prompt itself gets the new answer.
        is_degenerate: whether the reply to it babbles where the unedited model does not, at the prompt or after the
            same beginning.
        elsewhere: which of the other prompts that must get the new answer do.
        kept: of the prompts about other subjects, which answer as before.
        reply: what the model says to the prompt.
        babbles: whether that repeats itself, as it may have done before any edit.
    """

    says: bool
    is_degenerate: bool
    elsewhere: tuple[bool, ...]
    kept: tuple[bool, ...]
    reply: str
    babbles: bool = False

    @property
    def is_true(self) -> bool:
        """Whether a user who asks by the prompt gets the new answer in a sane text."""
        return self.says and not self.is_degenerate

    def holds(self, share: float) -> bool:
        """Whether it is true and also gets the new answer in that share of the prompts beside its own."""
        return self.is_true and sum(self.elsewhere) >= share * len(self.elsewhere)


@dataclass(frozen=True)
class Standing:
    """How all facts stand under one patch.

    Arguments:
        verdicts: one per fact.
        unrelated: of the prompts about other things, which answer as before.
        moved: nats per token by which texts that are about nothing in particular moved; 0 if there are none.
    """

    verdicts: tuple[Verdict, ...]
    unrelated: tuple[bool, ...]
    moved: float = 0.0

    @property
    def kept(self) -> float:
        """Share of all prompts that must stay and did."""
        every = self._staying()
        return sum(every) / len(every) if every else 1.0

    def keeps(self, share: float) -> bool:
        """Whether at least that share of the prompts stayed, as a whole number of them."""
        every = self._staying()
        return sum(every) >= math.floor(share * len(every) + 1e-9)

    def _staying(self) -> list[bool]:
        return [*chain.from_iterable(verdict.kept for verdict in self.verdicts), *self.unrelated]

    @property
    def babbles(self) -> tuple[bool, ...]:
        """Of the replies to the facts' own prompts, which repeat themselves."""
        return tuple(verdict.babbles for verdict in self.verdicts)

    @property
    def elsewhere(self) -> float:
        """Share of the prompts besides the facts' own that get the new answer."""
        every = list(chain.from_iterable(verdict.elsewhere for verdict in self.verdicts))
        return sum(every) / len(every) if every else 1.0


class Examination:
    """The trials of some facts, with what the model says before any edit.

    Arguments:
        model: without the edits.
        trials: one per fact.
        unrelated: prompts about other things.
        num_neighbours: how many of each fact's neighbours are asked: the first ones with an answer that can stay.
        texts: beginnings of texts with how they go on, which should stay about as likely as they are.
    """

    def __init__(
        self,
        model: EditableModel,
        trials: Sequence[Trial],
        unrelated: Sequence[str],
        num_neighbours: int,
        texts: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.model = model
        self._is_chat = model.chat is not None
        staying = dict.fromkeys((*chain.from_iterable(trial.neighbours for trial in trials), *unrelated))
        names = [name for trial in trials for name in new_names(trial.request)]
        self._room = AnswerRoom.of(model.tokenizer, names)
        self.trials = tuple(trials)
        self._before_any = self._replies()
        sure = self._beginnings(list(staying))
        for prompt in asking_for_facts({prompt: text for prompt, (text, _) in sure.items()}, trials, self._before_any):
            del sure[prompt]
        self.trials = tuple(
            replace(trial, neighbours=tuple(one for one in trial.neighbours if one in sure)[:num_neighbours])
            for trial in trials
        )
        self._unrelated = tuple(prompt for prompt in unrelated if prompt in sure)
        asked = dict.fromkeys((*chain.from_iterable(trial.neighbours for trial in self.trials), *self._unrelated))
        self._before = {prompt: sure[prompt] for prompt in asked}
        self._texts = tuple(texts)
        self._texts_before = self._scores(self._texts)

    def start(self) -> Standing:
        """How the facts stand before any edit: whatever must stay does, and the replies are known."""
        return self._standing(self._before_any, dict.fromkeys(self._before, True), 0.0)

    def standing(self) -> Standing:
        """How the facts stand under whatever patch is on the model now."""
        asked = [(prompt, text) for prompt, (text, _) in self._before.items()]
        found = self._scores([*asked, *self._texts])
        scores, texts_now = found[: len(asked)], found[len(asked) :]
        stays = {
            prompt: all(score.matches[:length])
            for (prompt, (_, length)), score in zip(self._before.items(), scores, strict=True)
        }
        return self._standing(self._replies(), stays, text_moved(self._texts_before, texts_now) or 0.0)

    def _standing(self, replies: Mapping[str, str], stays: Mapping[str, bool], moved: float) -> Standing:
        heard = self._heard()
        changed = {prompt: reply for prompt, reply in replies.items() if reply != self._before_any[prompt]}
        anyway = own_repetitions(self.model, changed, self._room)
        return Standing(
            tuple(self._verdict(trial, replies, heard, stays, anyway) for trial in self.trials),
            tuple(stays[prompt] for prompt in self._unrelated),
            moved,
        )

    def _verdict(
        self,
        trial: Trial,
        replies: Mapping[str, str],
        heard: Mapping[tuple[str, str], bool],
        stays: Mapping[str, bool],
        anyway: Container[str],
    ) -> Verdict:
        request, reply = trial.request, replies[trial.request.prompt]
        names = new_names(request)
        babbles = is_degenerate(reply, names)
        return Verdict(
            says=gives_new(request, reply, is_chat=self._is_chat),
            is_degenerate=babbles
            and request.prompt not in anyway
            and not is_degenerate(self._before_any[request.prompt], names),
            elsewhere=tuple(heard[prompt, request.target_new] for prompt in trial.elsewhere),
            kept=tuple(stays[prompt] for prompt in trial.neighbours),
            reply=reply,
            babbles=babbles,
        )

    def _replies(self) -> dict[str, str]:
        """Returns the model's replies to the facts' own prompts, long enough to detect degenerate text."""
        requests = [trial.request for trial in self.trials]
        return {one.prompt: text for one, text in zip(requests, replies_to(self.model, requests), strict=True)}

    def _heard(self) -> dict[tuple[str, str], bool]:
        """Whether it gives the new answers where the facts must hold too; by the answers' own tokens where it can."""
        asked = {(prompt, trial.request.target_new): trial for trial in self.trials for prompt in trial.elsewhere}
        replies = [pair for pair in asked if is_reply_to(pair[0], is_chat=self._is_chat)]
        texts = self._ask(list(dict.fromkeys(prompt for prompt, _ in replies)), self._room)
        found = {
            pair: gives_new(
                replace(asked[pair].request, prompt=pair[0], subject=None), texts[pair[0]], is_chat=self._is_chat
            )
            for pair in replies
        }
        direct = [pair for pair in asked if pair not in found]
        return found | dict(zip(direct, self._are_said(direct), strict=True))

    def _beginnings(self, prompts: Sequence[str]) -> dict[str, tuple[str, int]]:
        """How the model's answers begin, and how many tokens of that it is sure of, where it is sure of any."""
        prompts = self._with_sure_answer(prompts)
        plain = [prompt for prompt in prompts if not is_reply_to(prompt, is_chat=self._is_chat)]
        replies = [prompt for prompt in prompts if prompt not in plain]
        found = {
            prompt: text.strip()
            for group, tokens in ((plain, _FIRST_TOKENS), (replies, _IN_A_REPLY))
            for prompt, text in zip(group, self._written(group, tokens), strict=True)
        }
        pairs = [(prompt, text) for prompt, text in found.items() if text]
        lengths = [_sure_tokens(score) for score in self._scores(pairs)]
        return {prompt: (text, length) for (prompt, text), length in zip(pairs, lengths, strict=True) if length}

    def _with_sure_answer(self, prompts: Sequence[str]) -> list[str]:
        """The prompts behind which the next token is sure: for most, one pass shows that there is no sure answer."""
        if self.model.weights.routers:
            # What a memory answers is not what the model itself would say next.
            return list(prompts)
        found = {index for index, likely in next_by_prompt(self.model, prompts) if float(likely.amax()) >= _SURE}
        return [prompt for index, prompt in enumerate(prompts) if index in found]

    def _are_said(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Whether the model would write each text behind its prompt: one pass instead of one per token."""
        return [all(score.matches) for score in self._scores(pairs)]

    def _scores(self, pairs: Sequence[tuple[str, str]]) -> list[TargetScore]:
        return self.model.score([prompt for prompt, _ in pairs], [text for _, text in pairs]) if pairs else []

    def _written(self, prompts: Sequence[str], tokens: int) -> list[str]:
        # Scored in the same place afterwards, where no thought stands before them.
        with self.model.answering_at_once():
            return self.model.generate(list(prompts), max_new_tokens=tokens, until=[]) if prompts else []

    def _ask(self, prompts: Sequence[str], room: AnswerRoom) -> dict[str, str]:
        return dict(zip(prompts, written_answers(self.model, prompts, room), strict=True)) if prompts else {}


def _sure_tokens(score: TargetScore) -> int:
    """How many tokens, from the first on, the model would write itself and is sure of."""
    places = zip(score.matches, score.log_probs, strict=True)
    return sum(1 for _ in takewhile(lambda place: place[0] and place[1] >= _SURE, places))
