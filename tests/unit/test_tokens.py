import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import tiny
from palimpsest import DataError, EditRequest
from palimpsest.models import tokens
from unit.subject_tokens import require_subject_s_tokens


def test_targets_are_the_ids_the_model_would_generate():
    tokenizer = tiny.tokenizer()
    encoded = tokens.encode(tokenizer, "The capital of France is", "Lyon")
    assert tokenizer.decode(encoded.target_ids) == " Lyon"
    assert list(encoded.prompt_ids) == tokenizer("The capital of France is")["input_ids"]
    assert list(encoded.ids) == tokenizer("The capital of France is Lyon")["input_ids"]


def test_a_beginning_of_sequence_token_stands_before_the_prompt_and_never_in_the_target():
    core = Tokenizer(models.WordLevel({"<s>": 0, "a": 1, "b": 2, "[UNK]": 3}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>")
    assert tokens.encode(tokenizer, "a a", "b") == tokens.Encoded((0, 1, 1), (2,))


def test_a_closing_token_is_taken_off_the_prompt():
    core = Tokenizer(models.WordLevel({"</s>": 0, "a": 1, "b": 2, "[UNK]": 3}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    assert tokens.encode(tokenizer, "a a", "b") == tokens.Encoded((1, 1), (2,))


def test_scripts_without_spaces_get_none():
    assert tokens.separator("法国的首都是", "巴黎") == ""
    assert tokens.separator("The capital is", "Paris") == " "
    assert tokens.separator("Answer:\n", "Paris") == ""


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("The capital of France is", "France"),
        ("Anna Keller was born in", "Anna Keller"),
        ("Born in Oslo, Anna Keller, that Anna, lives in", "Anna"),
        ("(Vienna) lies on", "Vienna"),
        ("“Çelik” was written by", "Çelik"),
    ],
)
def test_the_subject_s_tokens_are_found_by_characters(prompt, subject):
    require_subject_s_tokens(tiny.tokenizer(), EditRequest(prompt, "x", subject=subject))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches_know_their_positions(side):
    batch = tokens.pad([[5, 6, 7], [8]], pad_id=0, side=side)
    assert batch.attention_mask.sum(1).tolist() == [3, 1]
    assert [batch.input_ids[i, c].item() for i, c in enumerate(batch.last_columns)] == [7, 8]
    assert batch.position_ids[1, batch.starts[1]] == 0
    assert torch.equal(batch.position_ids[0], torch.tensor([0, 1, 2]))


def test_empty_targets_are_refused():
    with pytest.raises(DataError, match="no tokens"):
        tokens.encode(tiny.tokenizer(), "", "x")
