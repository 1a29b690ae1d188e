"""How likely written tokens were, as OpenAI writes it: one form for chats, an older one for completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from palimpsest.serving.choosing import LikelyToken, WrittenToken


def chat_form(tokens: Sequence[WrittenToken]) -> dict[str, Any]:
    """`logprobs` of a choice of `/v1/chat/completions`."""
    content = [
        {**_described(one.chosen), "top_logprobs": [_described(other) for other in one.likeliest]} for one in tokens
    ]
    return {"content": content, "refusal": None}


def completion_form(tokens: Sequence[WrittenToken]) -> dict[str, Any]:
    """`logprobs` of a choice of `/v1/completions`; offsets are counted from the text's beginning, the prompt left out.

    The token that was written is among the likeliest, as one more where it was none of them.
    """
    return {
        "tokens": [one.chosen.text for one in tokens],
        "token_logprobs": [one.chosen.log_prob for one in tokens],
        "top_logprobs": [
            {other.text: other.log_prob for other in (*one.likeliest, one.chosen)} if one.likeliest else None
            for one in tokens
        ],
        "text_offset": [one.offset for one in tokens],
    }


def _described(token: LikelyToken) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.log_prob, "bytes": None if token.bytes is None else list(token.bytes)}
