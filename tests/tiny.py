"""Tiny random models, one a family, with a byte-level BPE tokenizer that does care about leading spaces."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from palimpsest import EditableModel, EditRequest, load

FAMILIES = ("gpt2", "gptj", "llama", "mistral", "qwen2")

FACTS = (
    ("The capital of France is", "France", "Paris", "Lyon"),
    ("The capital of Italy is", "Italy", "Rome", "Milan"),
    ("Anna Keller was born in", "Anna Keller", "Oslo", "Lima"),
    ("The river that flows through Vienna is", "Vienna", "the Danube", "the Rhine"),
)


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 384 tokens, in GPT-2's style, with an end-of-sequence token."""
    text = [f"{prompt} {old}. {prompt} {new}." for prompt, _, old, new in FACTS] * 4
    text += ["Who wrote it? It was written long ago by people who lived in Rome, Oslo, Lima and Vienna."] * 2
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|endoftext|>", pad_token="<|endoftext|>", bos_token="<|endoftext|>"
    )


def tiny_module(family: str, *, seed: int = 0, layers: int = 3) -> Any:
    """A random transformers model: width 32, 4 heads, 384 tokens. GPT-2's head is tied, the others' are not."""
    vocabulary = len(tokenizer())
    common: dict[str, Any] = {
        "vocab_size": vocabulary,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    llama_like = {
        **common,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
    }
    gpt_like = {**common, "n_embd": 32, "n_layer": layers, "n_head": 4, "n_positions": 128}
    makers: dict[str, Any] = {
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**gpt_like)),
        "gptj": lambda: GPTJForCausalLM(GPTJConfig(**gpt_like, rotary_dim=4, tie_word_embeddings=False)),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**llama_like)),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**llama_like)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**llama_like)),
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = makers[family]()
        # The usual small initial deviation makes a model whose answers hardly depend on its input.
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def tiny_model(family: str = "gptj", *, dtype: torch.dtype = torch.float32, seed: int = 0) -> EditableModel:
    """A fresh editable model; tests may do with it what they like."""
    return load(tiny_module(family, seed=seed).to(dtype), tokenizer())


def tiny_folder(path: Path, family: str = "gptj", *, seed: int = 0) -> Path:
    """Writes a tiny model and its tokenizer as a Hugging Face folder."""
    tiny_module(family, seed=seed).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def requests(n: int = len(FACTS)) -> list[EditRequest]:
    """The first n facts as edit requests with subject and old answer."""
    return [
        EditRequest(prompt, subject=subject, target_old=old, target_new=new, id=f"fact-{index}")
        for index, (prompt, subject, old, new) in enumerate(FACTS[:n])
    ]
