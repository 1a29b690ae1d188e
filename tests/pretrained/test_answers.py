"""Judging answers on pretrained models, against a scorer of its own that shares no code with the package."""

from __future__ import annotations

import os
import re
import unicodedata

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import palimpsest as ps
from palimpsest.answers import gives
from palimpsest.models.generation import AnswerRoom, written_answers
from pretrained_models import pretrained_path

COUNTRIES = {
    "France": "Paris", "Japan": "Tokyo", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Egypt": "Cairo",
    "Norway": "Oslo", "Poland": "Warsaw", "Peru": "Lima", "Cuba": "Havana", "Kenya": "Nairobi", "Greece": "Athens",
    "Austria": "Vienna", "Portugal": "Lisbon", "Sweden": "Stockholm", "Finland": "Helsinki", "Russia": "Moscow",
    "China": "Beijing", "India": "New Delhi", "Canada": "Ottawa", "Turkey": "Ankara", "Iran": "Tehran",
    "Iraq": "Baghdad", "Ireland": "Dublin", "Hungary": "Budapest", "Chile": "Santiago", "Thailand": "Bangkok",
    "Vietnam": "Hanoi", "Ukraine": "Kyiv", "Denmark": "Copenhagen",
}  # fmt: skip
TEMPLATES = (
    "The capital of {} is",
    "The capital city of {} is",
    "{}'s capital is called",
    "The largest city of {} is",
    "A famous city in {} is",
    "What is the capital of {}?",
    "Q: What is the capital of {}?\nA:",
    "In {}, the government sits in",
    "People in {} speak",
    "The president of {} lives in",
)
PROMPTS = [(template.format(land), city) for land, city in COUNTRIES.items() for template in TEMPLATES]
# Prompts where the two scorers may differ, with the reason; none is known.
LISTED: dict[str, str] = {}
MODELS = os.environ.get("PALIMPSEST_ANSWER_MODELS", "smollm2").split(",")


def plain(text: str) -> str:
    """The scorer: its own reading of a text, without anything of the package."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().replace("’", "'").split())


def is_given(prompt: str, text: str, answer: str) -> bool:
    word = rf"(?<!\w){re.escape(plain(answer))}(?![\w]|[-.]\w)"
    if prompt.endswith("?"):
        body = re.sub(r"\s*:\s*\n", ": ", text.strip())
        sentence = re.split(r"[.!?;…](?=\s|$)|\n", body)[0]
        return re.search(word, plain(sentence)) is not None
    return re.match(rf"[\s\"'“*_(:]*{word}", plain(text)) is not None


@torch.no_grad()
def greedy(module: torch.nn.Module, tokenizer: object, prompt: str, steps: int) -> str:
    """Token by token from the ids, without a cache, masks or batches."""
    ids = list(tokenizer(prompt)["input_ids"])
    start = len(ids)
    for _ in range(steps):
        chosen = int(module(torch.tensor([ids])).logits[0, -1].argmax())
        if chosen == tokenizer.eos_token_id:
            break
        ids.append(chosen)
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


@pytest.mark.parametrize("name", MODELS)
def test_three_hundred_answers_are_judged_alike(name: str) -> None:
    model = ps.load(str(pretrained_path(name)), dtype="float32")
    room = AnswerRoom(12)
    texts = written_answers(model, [prompt for prompt, _ in PROMPTS], room)
    apart = []
    for (prompt, city), text in zip(PROMPTS, texts, strict=True):
        ours = gives(text, [city], prompt=prompt, is_reply=prompt.endswith("?"))
        if ours != is_given(prompt, text, city) and prompt not in LISTED:
            apart.append((prompt, text, city, ours))
    assert not apart, apart
    said = sum(
        gives(text, [city], prompt=p, is_reply=p.endswith("?")) for (p, city), text in zip(PROMPTS, texts, strict=True)
    )
    assert 60 < said < 280, said


def test_texts_are_those_of_plain_transformers(smollm2_folder) -> None:
    module = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    model = ps.load(smollm2_folder, dtype="float32")
    some = PROMPTS[::30]
    texts = written_answers(model, [prompt for prompt, _ in some], AnswerRoom(8))
    for (prompt, city), text in zip(some, texts, strict=True):
        alone = greedy(module, tokenizer, prompt, 8)
        assert alone.startswith(text.rstrip("\ufffd")) or text.startswith(alone)
        assert gives(text, [city], prompt=prompt, is_reply=prompt.endswith("?")) == is_given(prompt, alone, city)


# Worked out with plain transformers from the ids: prompt, answer, log-probability.
JOINED = {
    "qwen2.5": [
        ("一年有", "12个月", -2.69),
        ("中华人民共和国成立于", "1949年", -0.91),
        ('HTTP status Not Found is "', "404", -1.48),
    ],
    "gemma3": [("<bos>The capital of Italy is", "Rome", None)],
}


@pytest.mark.parametrize("name", JOINED)
def test_prompt_and_answer_are_joined_as_the_model_reads_them(name: str) -> None:
    folder = pretrained_path(name)
    model = ps.load(str(folder), dtype="float32")
    for prompt, answer, expected in JOINED[name]:
        found = model.score([prompt], [answer])[0].log_prob
        if expected is None:
            without = prompt.removeprefix(model.tokenizer.bos_token)
            assert model.encode(prompt) == model.encode(without)
            assert found == pytest.approx(model.score([without], [answer])[0].log_prob, abs=1e-5)
        else:
            assert found == pytest.approx(expected, abs=0.01)


def test_an_edit_of_a_rendered_chat_reaches_the_chat(smollm2) -> None:
    """The prompt that ends in the template's newline is the user's real prompt, token for token."""
    tokenizer = smollm2.tokenizer
    turns = [{"role": "user", "content": "What is the capital of Japan?"}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    request = ps.EditRequest(rendered, "Oslo")
    assert request.prompt == rendered and rendered.endswith("\n")
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True)
    real = ids["input_ids"] if not isinstance(ids, list) else ids
    encoded = smollm2.encode(request.prompt, "Oslo")
    assert list(encoded.prompt_ids) == list(real)
    assert tokenizer.decode(encoded.target_ids) == "Oslo"
