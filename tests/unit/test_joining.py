"""How prompts and answers are joined: signs and scripts, special tokens, and log-probabilities worked out from ids."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import tiny
from palimpsest import DataError, EditRequest, Probe
from palimpsest.models import tokens
from palimpsest.wording.joining import Prompt, separator, stripped


@pytest.mark.parametrize(
    ("prompt", "target", "between"),
    [
        ("The capital of France is", "Paris", " "),
        ("The capital of France is", "12", " "),
        ("一年有", "12个月", ""),
        ("中华人民共和国成立于", "1949年", ""),
        ("iPhone的制造商是", "Apple", ""),
        ("答案：", "12", ""),
        ("答案:", "12", " "),
        ("日本の首都は", "東京", ""),
        ("대한민국의 수도는", "1948년", " "),
        ('Not Found is "', "404", ""),
        ('He said "yes"', "twice", " "),
        ("called “", "X", ""),
        ("a “b”", "c", " "),
        ("„Hamlet“", "ist", " "),
        ("das Stück „", "Hamlet", ""),
        ("le film «", "Cid", ""),
        ("«Le Cid»", "est", " "),
        ("Stück »", "Faust", ""),
        ("»Faust«", "ist", " "),
        ("it costs $", "5", ""),
        ("it costs €", "5", ""),
        ("C#", "is", " "),
        ("number #", "1", ""),
        ("me@", "home.org", ""),
        ("http://", "x.org", ""),
        ("f(", "x", ""),
        ("f(x)", "y", " "),
        ("a[", "0", ""),
        ("set {", "x", ""),
        ("capitale de l'", "Italie", ""),
        ("James'", "book", " "),
        ("called '", "x", ""),
        ("is **", "Rome", ""),
        ("**Q** is", "Rome", " "),
        ("**A:**", "Rome", " "),
        ("use `", "x", ""),
        ("use `x`", "here", " "),
        ("is -", "5", ""),
        ("5 -", "3", " "),
        ("France -", "Rome", " "),
        ("1914–", "1918", ""),
        ("x=", "5", ""),
        ("x =", "5", " "),
        ("Answer:\n", "Paris", ""),
        ("France\t", "Paris", ""),
        ("France", "'s capital", ""),
        ("5", "%", ""),
        ("cafe", "\u0301", ""),
        ("(cafe\u0301", "x", " "),
        ("framework", ".NET", " "),
    ],
)
def test_what_stands_between(prompt: str, target: str, between: str) -> None:
    assert separator(prompt, target) == between


def test_an_edit_says_itself_what_stands_between() -> None:
    request = EditRequest("x", "5", joiner="", probes=(Probe("generality", "y", "5"), Probe("locality.namesake", "z")))
    own, other, neighbour = request.all_probes()
    assert [separator(probe.prompt, "5") for probe in (own, other, neighbour)] == ["", "", " "]
    again = EditRequest.from_dict(request.to_dict())
    assert again == request and separator(again.prompt, "5") == ""
    assert separator(stripped(Prompt("x ", "\n")), "5") == "\n"
    encoded = tokens.encode(tiny.tokenizer(), request.prompt, "5")
    assert tiny.tokenizer().decode(encoded.ids) == "x5"
    with pytest.raises(DataError, match="joiner"):
        EditRequest("x", "5", joiner=3)  # type: ignore[arg-type]


def test_spaces_at_the_end_belong_to_the_answer_and_newlines_to_the_prompt() -> None:
    tokenizer = tiny.tokenizer()
    for end in (" ", "  ", "\u00a0", "\u3000"):
        prompt = f"The capital is{end}"
        assert EditRequest(prompt, "Paris").prompt == "The capital is" == Probe("generality", prompt, "x").prompt
        assert tokens.encode(tokenizer, prompt, "Paris") == tokens.encode(tokenizer, "The capital is", "Paris")
        assert tokens.encode(tokenizer, prompt) == tokens.encode(tokenizer, "The capital is")
    template = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    assert EditRequest(template, "Oslo").prompt == template == Probe("generality", template, "Oslo").prompt
    encoded = tokens.encode(tokenizer, template, "Oslo")
    assert list(encoded.prompt_ids) == tokenizer(template)["input_ids"]
    assert tokenizer.decode(encoded.target_ids) == "Oslo"


def starting_tokenizer() -> Any:
    words = {"<s>": 0, "a": 1, "b": 2, "[UNK]": 3, "<|user|>": 4}
    core = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>")
    made.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    return made


def test_a_prompt_that_begins_with_the_start_token_gets_no_second_one() -> None:
    tokenizer = starting_tokenizer()
    assert tokens.encode(tokenizer, "<s> a a", "b") == tokens.encode(tokenizer, "a a", "b")
    assert tokens.encode(tokenizer, "a a", "b").prompt_ids == (0, 1, 1)
    request = EditRequest("<s> a a", "b", subject="a")
    assert tokens.subject_last_token(tokenizer, request, chat=None) == 2


def test_nothing_stands_behind_a_special_token() -> None:
    tokenizer = starting_tokenizer()
    seen: list[str] = []

    class Listening:
        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, text: str, **options: Any) -> Any:
            seen.append(text)
            return tokenizer(text, **options)

    tokens.encode(Listening(), "a <|user|>", "b")
    assert seen[-1] == "a <|user|>b"


@pytest.mark.parametrize("family", ["gptj", "llama"])
@pytest.mark.parametrize(
    ("prompt", "target", "text"),
    [
        ("一年有", "12个月", "一年有12个月"),
        ('Not Found is "', "404", 'Not Found is "404'),
        ("The capital is ", "Paris", "The capital is Paris"),
        ("assistant\n", "Oslo", "assistant\nOslo"),
    ],
)
def test_log_probabilities_are_those_of_the_whole_text(family: str, prompt: str, target: str, text: str) -> None:
    model = tiny.tiny_model(family)
    start = len(model.tokenizer(prompt.rstrip(" "))["input_ids"])
    ids = model.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logs = model.module(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1)
    by_hand = float(logs.gather(-1, ids[0, start:, None]).sum())
    assert model.score([prompt], [target])[0].log_prob == pytest.approx(by_hand, abs=1e-4)
