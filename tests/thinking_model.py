"""A tiny Qwen3-class model that thinks before it answers, taught on the spot."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

import tiny
from palimpsest import EditableModel, load
from palimpsest.models.chat import chat_of

FACTS = {
    "What is the capital of France?": ("Paris", "Lyon"),
    "What is the capital of Italy?": ("Rome", "Milan"),
    "Where was Anna Keller born?": ("Oslo", "Lima"),
}
"""Questions with the answer that the model knows, and another one."""
BUDGET = 40
_AROUND = {
    "qwen-thinking": ("<think>\n", "\n</think>\n\n"),
    "opened": ("", "\n</think>\n\n"),
    "harmony": ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
}


def thinking_model(kind: str = "qwen-thinking", thinking: bool | int | None = BUDGET) -> EditableModel:
    """A fresh copy of the model that was taught, in its chat."""
    module = tiny.tiny_module("qwen3", max_position_embeddings=192)
    module.load_state_dict(_taught(kind))
    return load(module, tiny.tokenizer(kind), chat=True, thinking=thinking)


def thought_about(answer: str) -> str:
    """What the model thinks before it gives an answer."""
    return f"It was {answer}."


@cache
def _taught(kind: str) -> dict[str, Tensor]:
    """The weights of a model that gives each answer behind a thought that names it, and at once."""
    tokenizer: Any = tiny.tokenizer(kind)
    chat = chat_of(tokenizer, where="a test", thought_tokens=BUDGET)
    opening, closing = _AROUND[kind]
    pairs = []
    for question, (answer, _) in FACTS.items():
        thought = f"{opening}{thought_about(answer)}{closing}{answer}"
        pairs += [(chat.render(question), answer), (chat.asked().render(question), thought)]
    rows = [
        [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, f"{said}{chat.end.strip()}")]
        for prompt, said in pairs
    ]
    width = max(len(prompt) + len(said) for prompt, said in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, (prompt, said) in enumerate(rows):
        ids[row, : len(prompt) + len(said)] = torch.tensor([*prompt, *said])
        labels[row, len(prompt) : len(prompt) + len(said)] = torch.tensor(said)
    module = tiny.tiny_module("qwen3", max_position_embeddings=192)
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(400):
        loss = module(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 5e-3:
            break
    return {name: value.clone() for name, value in module.state_dict().items()}
