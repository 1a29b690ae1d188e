"""Estimates the requests of a build to a chat model in advance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from palimpsest.datasets.portability.asking import Message, messages_for
from palimpsest.datasets.portability.generators import ChatGenerator
from palimpsest.requests import EditRequest

CHARACTERS_A_TOKEN = 4
TOKENS_AN_ITEM = 90
"""Of an answer; measured on the example in the task, with room."""


@dataclass(frozen=True)
class RequestEstimate:
    """Requests and tokens. Of a build, if every first answer can be read; each that cannot costs one more request.

    Arguments:
        requests: to be sent.
        cached: answers that are in the cache already and cost nothing.
        input_tokens: of all requests, at about four characters a token.
        output_tokens: of all answers.
    """

    requests: int
    cached: int
    input_tokens: int
    output_tokens: int

    def cost(self, input_price: float, output_price: float) -> float:
        """The cost, in the currency of the prices for a million tokens."""
        return (self.input_tokens * input_price + self.output_tokens * output_price) / 1e6


def estimated(questions: Sequence[Sequence[Message]], cached: int, tokens_an_answer: int) -> RequestEstimate:
    """Estimates the cost of asking these questions.

    Arguments:
        questions: those that are not in the cache.
        cached: how many others are.
        tokens_an_answer: tokens of the answer to one of them.
    """
    characters = sum(len(one.content) for messages in questions for one in messages)
    return RequestEstimate(
        requests=len(questions),
        cached=cached,
        input_tokens=-(-characters // CHARACTERS_A_TOKEN),
        output_tokens=len(questions) * tokens_an_answer,
    )


def estimate(edits: Sequence[EditRequest], generator: ChatGenerator, num_items: int) -> RequestEstimate:
    """Estimates the requests of a build over these edits. Sends nothing."""
    unasked = [edit for edit in edits if not generator.is_cached(edit, num_items)]
    questions = [messages_for(edit, num_items) for edit in unasked]
    return estimated(questions, len(edits) - len(unasked), num_items * TOKENS_AN_ITEM)
