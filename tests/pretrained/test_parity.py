"""What the model is asked through Palimpsest is what plain transformers gives."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

FACTS = [
    ("The capital of France is", "Paris"),
    ("The capital city of Japan is", "Tokyo"),
    ("The author of Romeo and Juliet is", "William Shakespeare"),
    ("Water is made of hydrogen and", "oxygen"),
    ("The largest planet of the solar system is", "Jupiter"),
    ("Two plus two is", "four"),
]


@pytest.fixture(scope="module")
def plain(smollm2_folder):
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(smollm2_folder)


def test_scores_are_the_log_probabilities_of_plain_transformers(plain, smollm2_float32):
    module, tokenizer = plain
    scores = smollm2_float32.score(*zip(*FACTS, strict=True))
    for (prompt, target), score in zip(FACTS, scores, strict=True):
        ids = tokenizer(f"{prompt} {target}", return_tensors="pt")["input_ids"]
        start = len(tokenizer(prompt)["input_ids"])
        with torch.no_grad():
            logits = module(ids).logits[0].double().log_softmax(-1)
        places = range(start, ids.shape[1])
        assert score.log_probs == pytest.approx([logits[i - 1, ids[0, i]].item() for i in places], abs=1e-3)
        assert score.predicted == tuple(logits[i - 1].argmax().item() for i in places)
    assert scores[0].accuracy == scores[1].accuracy == 1.0, "the model knows the two capitals"


def test_answers_are_the_greedy_ones_of_plain_transformers(plain, smollm2_float32):
    module, tokenizer = plain
    prompts = [prompt for prompt, _ in FACTS]
    answers = smollm2_float32.generate(prompts, max_new_tokens=16, until=())
    greedy = GenerationConfig(do_sample=False, max_new_tokens=16, pad_token_id=0, eos_token_id=tokenizer.eos_token_id)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        whole = module.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
        assert answer.strip() == tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True).strip()
