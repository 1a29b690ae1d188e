"""Tiny random models, one a family, with a byte-level BPE tokenizer that does care about leading spaces."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from palimpsest import EditableModel, EditRequest, Probe, load

FAMILIES = (
    "gpt2",
    "gptj",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "olmo2",
    "stablelm",
    "phi",
    "phi3",
    "gpt_neox",
    "bloom",
    "opt",
    "falcon",
    "falcon-grouped",
    "falcon-multi-head",
    "gpt_neo",
    "gpt_bigcode",
    "codegen",
    "mpt",
    "starcoder2",
    "ministral",
    "olmo",
    "olmo3",
    "smollm3",
    "cohere",
    "cohere2",
    "helium",
    "seed_oss",
    "ernie4_5",
    "hunyuan_v1_dense",
    "exaone4",
    "nemotron",
    "arcee",
    "apertus",
    "granite",
    "glm",
    "glm4",
)
MIXTURES = (
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "olmoe",
    "phimoe",
    "gpt_oss",
    "glm4_moe",
    "ernie4_5_moe",
    "granitemoe",
)

ENCODER_DECODERS = ("t5", "t5-gated", "bart")
EVERY = FAMILIES + MIXTURES + ENCODER_DECODERS

FACTS = (
    ("The capital of France is", "France", "Paris", "Lyon"),
    ("The capital of Italy is", "Italy", "Rome", "Milan"),
    ("Anna Keller was born in", "Anna Keller", "Oslo", "Lima"),
    ("The river that flows through Vienna is", "Vienna", "the Danube", "the Rhine"),
)


LLAMA_3_CHAT = """
{%- for turn in messages -%}
{{- bos_token if loop.first else "" -}}
{{- "<|start_header_id|>" + turn.role + "<|end_header_id|>\n\n" + (turn.content | trim) + "<|eot_id|>" -}}
{%- endfor -%}
{{- "<|start_header_id|>assistant<|end_header_id|>\n\n" if add_generation_prompt else "" -}}
"""
# As Qwen3's: the model opens the thought itself, and an empty one stands where it is told not to think.
QWEN_THINKING_CHAT = """
{%- for turn in messages -%}
{%- set thought = "<think>\n\n</think>\n\n" if turn.role == "assistant" else "" -%}
{{- "<|im_start|>" + turn.role + "\n" + thought + turn.content + "<|im_end|>\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- "<|im_start|>assistant\n" -}}
{{- "<think>\n\n</think>\n\n" if enable_thinking is defined and not enable_thinking else "" -}}
{%- endif -%}
"""
QWEN_CHAT = '\n{{- "<|im_start|>system\nYou answer in one word.<|im_end|>\n" -}}' + QWEN_THINKING_CHAT
BRACKETS_CHAT = """
{%- for turn in messages -%}
{{- bos_token + "[INST] " + turn.content + " [/INST]" if turn.role == "user" else " " + turn.content + eos_token -}}
{%- endfor -%}
"""
# As DeepSeek-R1's and Qwen3-Thinking's: the generation prompt opens the thought, and nothing leaves it out.
OPENED_THINKING_CHAT = """
{%- for turn in messages -%}
{{- "<|im_start|>" + turn.role + "\n" + turn.content.split("</think>")[-1] + "<|im_end|>\n" -}}
{%- endfor -%}
{{- "<|im_start|>assistant\n<think>\n" if add_generation_prompt else "" -}}
"""
# As gpt-oss': the thought is a message of its own, in another channel than the answer.
HARMONY_CHAT = """
{%- for turn in messages -%}
{%- set channel = "<|channel|>final" if turn.role == "assistant" else "" -%}
{%- set end = "<|return|>" if turn.role == "assistant" and loop.last else "<|end|>" -%}
{{- "<|start|>" + turn.role + channel + "<|message|>" + turn.content + end -}}
{%- endfor -%}
{{- "<|start|>assistant" if add_generation_prompt else "" -}}
"""
# Template, the token that begins a text, and special tokens, the last of which ends a turn.
CHATS = {
    "llama-3": (LLAMA_3_CHAT, "<|begin|>", ("<|begin|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "qwen": (QWEN_CHAT, None, ("<|im_start|>", "<|im_end|>")),
    "brackets": (BRACKETS_CHAT, "<|begin|>", ("<|begin|>", "<|endoftext|>")),
}
THINKING_CHATS = {
    "qwen-thinking": (QWEN_THINKING_CHAT, None, ("<|im_start|>", "<|im_end|>")),
    "opened": (OPENED_THINKING_CHAT, None, ("<|im_start|>", "<|im_end|>")),
    "harmony": (HARMONY_CHAT, None, ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>")),
}


@cache
def tokenizer(chat: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 384 tokens, in GPT-2's style, with an end-of-sequence token.

    Arguments:
        chat: the kind of chat template it has, one of `CHATS` or `THINKING_CHATS`; those that begin texts with a token
            put it in front of every text, as the published tokenizers do.
    """
    text = [f"{prompt} {old}. {prompt} {new}." for prompt, _, old, new in FACTS] * 4
    text += ["Who wrote it? It was written long ago by people who lived in Rome, Oslo, Lima and Vienna."] * 2
    template, start, special = {**CHATS, **THINKING_CHATS}[chat] if chat else (None, None, ())
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=list(dict.fromkeys(["<|endoftext|>", *special])),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(text, trainer)
    if start:
        begins = processors.TemplateProcessing(single=f"{start} $A", special_tokens=[(start, core.token_to_id(start))])
        core.post_processor = begins
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        bos_token=start or "<|endoftext|>",
        chat_template=template,
    )


@cache
def closing_tokenizer() -> PreTrainedTokenizerFast:
    """Words with a marker in front, as sentencepiece has them, and every text closed with an end token, as T5's are."""
    text = [f"{prompt} {old}. {new}." for prompt, _, old, new in FACTS] * 4
    text += ["Who wrote it? It was written long ago by people who lived in Rome, Oslo, Lima and Vienna."] * 2
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    core.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    core.train_from_iterator(text, trainer)
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def tokenizer_of(family: str) -> PreTrainedTokenizerFast:
    """The tokenizer that the tiny models of a family go with."""
    return closing_tokenizer() if family in ENCODER_DECODERS else tokenizer()


def tiny_config(family: str, *, layers: int = 3, **more: Any) -> Any:
    """A small config: width 32, 4 heads, 384 tokens. Heads are tied where the family's published models tie them.

    Arguments:
        more: other fields of the config.
    """
    common: dict[str, Any] = {
        "vocab_size": len(tokenizer()),
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
    gemma_like = {**llama_like, "head_dim": 8, "tie_word_embeddings": True}
    gpt_like = {**common, "n_embd": 32, "n_layer": layers, "n_head": 4, "n_positions": 128}
    falcon_like = {**common, "hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 4}
    wide_heads = {**llama_like, "head_dim": 8}
    windowed = {
        **wide_heads,
        "sliding_window": 8,
        "layer_types": ["sliding_attention"] * (layers - 1) + ["full_attention"],
    }
    mixture = {
        **wide_heads,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "num_local_experts": 4,
        "num_experts": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
    }
    # One layer less in the encoder, so that the two are never mistaken for each other.
    t5_like = {
        "vocab_size": len(closing_tokenizer()), "d_model": 32, "d_ff": 48, "d_kv": 8, "num_heads": 4,
        "num_layers": layers - 1, "num_decoder_layers": layers, "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 16, "decoder_start_token_id": 0,
    }  # fmt: skip
    bart_like = {
        "vocab_size": len(closing_tokenizer()), "d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
        "encoder_layers": layers - 1, "decoder_layers": layers, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 0,
        "eos_token_id": 1, "decoder_start_token_id": 1, "forced_eos_token_id": None,
    }  # fmt: skip
    options: dict[str, dict[str, Any]] = {
        "t5": {**t5_like, "feed_forward_proj": "relu"},
        "t5-gated": {**t5_like, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        "bart": bart_like,
        "gpt2": gpt_like,
        "gptj": {**gpt_like, "rotary_dim": 4, "tie_word_embeddings": False},
        "qwen3": wide_heads,
        "gemma": gemma_like,
        # Scaled so that the cap bends the logits of a random model as it bends those of a trained one.
        "gemma2": {**gemma_like, "query_pre_attn_scalar": 8, "final_logit_softcapping": 10.0, "sliding_window": 8},
        "gemma3_text": {**gemma_like, "query_pre_attn_scalar": 8, "sliding_window": 8},
        "gpt_neox": {**llama_like, "rotary_pct": 0.5},
        "bloom": {**common, "hidden_size": 32, "n_layer": layers, "n_head": 4},
        "opt": {**llama_like, "ffn_dim": 48, "word_embed_proj_dim": 32, "tie_word_embeddings": True},
        "falcon": {**falcon_like, "multi_query": True},
        "falcon-grouped": {**falcon_like, "new_decoder_architecture": True, "num_kv_heads": 2},
        "falcon-multi-head": {**falcon_like, "multi_query": False, "alibi": True, "parallel_attn": False, "bias": True},
        "gpt_neo": {
            **{**common, "hidden_size": 32, "num_layers": layers, "num_heads": 4, "window_size": 8},
            "max_position_embeddings": 128,
            "attention_types": [[["global", *["local"] * (layers - 1)], 1]],
        },
        "gpt_bigcode": gpt_like,
        "codegen": {**gpt_like, "rotary_dim": 4, "tie_word_embeddings": False},
        "mpt": {**common, "d_model": 32, "n_layers": layers, "n_heads": 4, "max_seq_len": 128},
        "ministral": windowed,
        "olmo3": windowed,
        "cohere": {**llama_like, "tie_word_embeddings": True},
        "cohere2": {**windowed, "tie_word_embeddings": True},
        "helium": wide_heads,
        "seed_oss": wide_heads,
        "ernie4_5": wide_heads,
        "hunyuan_v1_dense": wide_heads,
        "exaone4": windowed,
        # The published models' multipliers, so that nothing passes because a factor is one.
        "granite": {
            **llama_like,
            "embedding_multiplier": 12.0,
            "logits_scaling": 8.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.25,
        },
        "glm": wide_heads,
        "glm4": wide_heads,
        **dict.fromkeys(MIXTURES, mixture),
        "gpt_oss": {**mixture, "sliding_window": 8},
        "granitemoe": {**mixture, "residual_multiplier": 0.22, "logits_scaling": 8.0},
        "glm4_moe": {**mixture, "first_k_dense_replace": 1},
    }
    return AutoConfig.for_model(family.split("-")[0], **{**options.get(family, llama_like), **more})


def tiny_module(family: str, *, seed: int = 0, layers: int = 3, **more: Any) -> Any:
    """A random transformers model of the family's own class; see `tiny_config`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        kind = AutoModelForSeq2SeqLM if family in ENCODER_DECODERS else AutoModelForCausalLM
        model = kind.from_config(tiny_config(family, layers=layers, **more), dtype=torch.float32)
        if family == "t5-gated":
            # The published models have a head of their own, which transformers builds tied.
            model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
        # The usual small initial deviation makes a model whose answers hardly depend on its input.
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
        if family == "bart":
            # A norm behind every layer drowns what a layer has read in what large weights have made of it.
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1 and "layers" in name:
                    torch.nn.init.normal_(parameter, std=0.15)
        if getattr(model.config, "scale_decoder_outputs", False):
            # What the family's first version divides its logits by, its published embeddings make up for.
            torch.nn.init.normal_(model.shared.weight, std=0.3 * model.config.d_model**0.5)
    return model.eval()


def tiny_model(
    family: str = "gptj", *, dtype: torch.dtype = torch.float32, seed: int = 0, layers: int = 3
) -> EditableModel:
    """A fresh editable model; tests may do with it what they like."""
    return load(tiny_module(family, seed=seed, layers=layers).to(dtype), tokenizer_of(family))


def tiny_folder(path: Path, family: str = "gptj", *, seed: int = 0, chat: str | None = None) -> Path:
    """Writes a tiny model and its tokenizer, perhaps with a chat template, as a Hugging Face folder."""
    tiny_module(family, seed=seed).save_pretrained(path)
    (tokenizer(chat) if chat else tokenizer_of(family)).save_pretrained(path)
    return path


def requests(n: int = len(FACTS)) -> list[EditRequest]:
    """The first n facts as edit requests with subject and old answer."""
    return [
        EditRequest(prompt, subject=subject, target_old=old, target_new=new, id=f"fact-{index}")
        for index, (prompt, subject, old, new) in enumerate(FACTS[:n])
    ]


def trainable_requests(n: int = 20) -> list[EditRequest]:
    """Edits that an editor can be trained on: each with a rephrasing and two prompts that must stay."""
    names = ["France", "Italy", "Vienna", "Rome", "Oslo", "Lima", "Anna", "Keller", "Danube", "Rhine"]
    answers = ["Lyon", "Milan", "Lima", "Oslo", "Rome"]
    made = []
    for index in range(n):
        subject = f"{names[index % 10]} {names[(3 * index + index // 10) % 10]}"
        new, old = answers[index % 5], answers[(index + 1) % 5]
        probes = (
            Probe("generality", f"It is long ago that {subject} was born in", new, subject),
            Probe("locality.neighborhood", f"The river of {names[(index + 5) % 10]} is", "the Rhine"),
            Probe("locality.out_of_scope", f"Who wrote of {names[(index + 7) % 10]}?", "people"),
        )
        prompt = f"The capital of {subject} is"
        made.append(EditRequest(prompt, new, subject=subject, target_old=old, probes=probes, fact=subject))
    return made


def text_lines(n: int = 200, seed: int = 0) -> list[str]:
    """Texts of two to thirty words for second moments, no two alike; together some 5,000 tokens."""
    generator = torch.Generator().manual_seed(seed)
    words = ["Rome", "Oslo", "Lima", "Vienna", "Keller", "river", "capital", "born", "written", "people", "long", "ago"]
    picks = torch.randint(len(words), (n, 30), generator=generator).tolist()
    sizes = torch.randint(2, 30, (n,), generator=generator).tolist()
    return [" ".join(words[pick] for pick in row[:size]) for row, size in zip(picks, sizes, strict=True)]


@cache
def text_file() -> str:
    """A file with these texts, which goes away with the process."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-text-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "lines.txt").write_text("\n".join(text_lines()), encoding="utf-8")
    return str(folder / "lines.txt")


@cache
def corpus_file() -> str:
    """A file of edits, about other subjects than `requests`, with a rephrasing and a neighbour each."""
    lines = []
    for number, place in enumerate(("Peru", "Chile", "Ghana", "Nepal", "Qatar", "Malta")):
        city = f"City {number}"
        probes = [
            {"kind": "generality", "prompt": f"{place} is governed from", "expected": city},
            {"kind": "locality.neighborhood", "prompt": f"The river of {place} is", "expected": f"River {number}"},
        ]
        record = {"prompt": f"The capital of {place} is", "subject": place, "target_new": city, "probes": probes}
        lines.append(json.dumps(record))
    folder = Path(tempfile.mkdtemp(prefix="tiny-corpus-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return str(folder / "corpus.jsonl")


def statistics() -> dict[str, Any]:
    """Options for second moments that are collected in no time: 1,024 tokens, eight for every dimension of a key."""
    return {"max_tokens": 1024, "tolerance": None}


def second_moments(**options: Any) -> dict[str, Any]:
    """The same with a text, as a locate-then-edit method takes them."""
    return {"text": text_file(), "statistics": {**statistics(), **options}}
