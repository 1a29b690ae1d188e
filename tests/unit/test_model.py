import re

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel, PersimmonConfig, PersimmonForCausalLM

import tiny
from palimpsest import Architecture, ModelError, Part, load
from palimpsest.answers import first_sentence, is_exact
from palimpsest.models.hooks import Point
from palimpsest.models.sites.families import GPTJ
from palimpsest.models.sites.linear import factors_to_storage, weight_as_out_in
from palimpsest.models.sites.resolving import resolve

PROMPTS = ["The capital of France is", "Anna", "Who wrote it long ago, people of Oslo and Vienna, or", "The river"]
TARGETS = ["Lyon", "Keller was born in Lima", "the Danube", "that flows"]


@pytest.mark.parametrize("family", tiny.FAMILIES + tiny.MIXTURES)
def test_scores_are_log_probabilities_computed_by_hand(family):
    model = tiny.tiny_model(family)
    scores = model.score(PROMPTS, TARGETS)
    for prompt, target, score in zip(PROMPTS, TARGETS, scores, strict=True):
        ids = tiny.tokenizer()(f"{prompt} {target}", return_tensors="pt")["input_ids"]
        start = len(tiny.tokenizer()(prompt)["input_ids"])
        with torch.no_grad():
            logits = model.module(ids, attention_mask=torch.ones_like(ids)).logits[0].double().log_softmax(-1)
        by_hand = [logits[i - 1, ids[0, i]].item() for i in range(start, ids.shape[1])]
        assert score.log_probs == pytest.approx(by_hand, abs=1e-4)
        assert score.predicted == tuple(logits[start - 1 : -1].argmax(-1).tolist())
        assert score.accuracy == sum(
            p == t for p, t in zip(score.predicted, ids[0, start:].tolist(), strict=True)
        ) / len(by_hand)


@pytest.mark.parametrize("family", tiny.FAMILIES + tiny.MIXTURES)
def test_padding_changes_nothing(family):
    model = tiny.tiny_model(family)
    alone = [model.score([p], [t])[0].log_prob for p, t in zip(PROMPTS, TARGETS, strict=True)]
    for side in ("left", "right"):
        together = [score.log_prob for score in model.score(PROMPTS, TARGETS, side=side)]
        assert together == pytest.approx(alone, abs=1e-4)
    assert model.generate(PROMPTS, max_new_tokens=6) == [model.generate(p, max_new_tokens=6) for p in PROMPTS]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_generation_is_the_greedy_one(family):
    model = tiny.tiny_model(family)
    ids = list(tiny.tokenizer()("Anna Keller was")["input_ids"])
    start = len(ids)
    for _ in range(5):
        with torch.no_grad():
            row = torch.tensor([ids])
            ids.append(int(model.module(row, attention_mask=torch.ones_like(row)).logits[0, -1].argmax()))
    text = tiny.tokenizer().decode(ids[start:], skip_special_tokens=True)
    assert first_sentence(model.generate("Anna Keller was", max_new_tokens=5)) == first_sentence(text)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_capture_and_intervene_meet_at_the_same_place(family):
    model = tiny.tiny_model(family)
    key, value = Point("mlp.down", 1, "input"), Point("mlp.down", 1)
    batch, found = model.capture(PROMPTS, [key, value, Point("resid", 1), Point("attn.q", 0)])
    layer = model.sites.module("mlp.down", 1)
    bias = 0 if getattr(layer, "bias", None) is None else layer.bias
    assert torch.allclose(found[key] @ weight_as_out_in(layer).t() + bias, found[value], atol=1e-5)
    assert found[Point("attn.q", 0)].shape[-1] == 32

    # Adding to what the MLP writes adds the same to what the block writes, unless a norm stands in between.
    extra = torch.randn(32)
    with model.intervene({value: lambda out: out + extra}):
        _, changed = model.capture(PROMPTS, [Point("resid", 1)])
    real = batch.attention_mask.bool()
    difference = changed[Point("resid", 1)][real] - found[Point("resid", 1)][real]
    same = torch.allclose(difference, extra.expand_as(difference), atol=1e-4)
    assert same is model.sites.architecture.mlp_writes_residual
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.module.modules())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_orientation_follows_the_type_even_where_the_weight_is_square(family):
    model = tiny.tiny_model(family)
    layer = model.sites.module("attn.out", 0)
    assert layer.weight.shape[0] == layer.weight.shape[1]
    left, right = torch.randn(32, 1), torch.randn(1, 32)
    change = torch.matmul(*factors_to_storage(layer, left, right))
    key = torch.randn(32)
    before = layer(key)
    with torch.no_grad():
        layer.weight += change
    assert torch.allclose(layer(key) - before, (left @ right) @ key, atol=1e-4)


def test_an_unknown_family_says_which_sites_were_looked_for_and_how_to_add_one():
    config = PersimmonConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    module = PersimmonForCausalLM(config)
    with pytest.raises(ModelError) as caught:
        load(module, tiny.tokenizer())
    assert re.search(r"persimmon(.|\n)*mlp\.down(.|\n)*palimpsest\.Architecture", str(caught.value))

    row = Architecture(
        "persimmon", ("persimmon",), "model.layers", "model.embed_tokens", "model.final_layernorm", "lm_head",
        {"mlp.up": Part("mlp.dense_h_to_4h"), "mlp.down": Part("mlp.dense_4h_to_h"), "resid": Part("")},
    )  # fmt: skip
    assert load(module, tiny.tokenizer(), architecture=row).num_layers == 1


@pytest.mark.parametrize(
    ("site", "path", "words"),
    [
        ("mlp.down", "mlp.fc_out_", "no module"),
        ("mlp.down", "ln_1", "LayerNorm"),
        ("mlp.down", "mlp.fc_in", "widths"),
        ("attn.out", "mlp.fc_in", "widths"),
    ],
)
def test_a_wrong_row_is_found_out_at_load(site, path, words):
    row = Architecture(**{**vars(GPTJ), "sites": {**GPTJ.sites, site: Part(path)}})
    with pytest.raises(ModelError) as caught:
        resolve(tiny.tiny_module("gptj"), row)
    assert site in str(caught.value) and words in str(caught.value)


def test_a_model_without_a_row_or_with_the_wrong_tokenizer_is_refused():
    bert = BertLMHeadModel(BertConfig(vocab_size=400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                      intermediate_size=16, is_decoder=True))  # fmt: skip
    with pytest.raises(ModelError, match="bert"):
        load(bert, tiny.tokenizer())
    small = tiny.tiny_module("gpt2")
    small.resize_token_embeddings(100)
    with pytest.raises(ModelError, match="at most 100 tokens"):
        load(small, tiny.tokenizer())


def test_layers_and_prompts_out_of_range_are_named():
    model = tiny.tiny_model()
    with pytest.raises(ModelError, match="0 to 2"):
        model.sites.module("mlp.down", 3)
    with pytest.raises(Exception, match="at most 128 tokens"):
        model.encode("Oslo " * 200)


def test_pickled_weights_are_never_opened(tmp_path):
    folder = tiny.tiny_folder(tmp_path / "model")
    weights = folder / "model.safetensors"
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ModelError, match="pytorch_model.bin"):
        load(str(folder))
    with pytest.raises(ModelError, match="no such model folder"):
        load(str(tmp_path / "nothing"))


def test_neither_tokenizer_nor_config_nor_grad_flags_are_changed(tmp_path):
    module, tokenizer = tiny.tiny_module("gptj"), tiny.tokenizer()
    before = (module.config.to_dict(), tokenizer.padding_side, tokenizer.pad_token, tokenizer.truncation_side)
    model = load(module, tokenizer)
    model.generate(PROMPTS, max_new_tokens=3)
    model.score(PROMPTS, TARGETS)
    assert before == (module.config.to_dict(), tokenizer.padding_side, tokenizer.pad_token, tokenizer.truncation_side)


@pytest.mark.parametrize(
    ("generated", "expected", "verdict"),
    [
        ("Paris.", "Paris", True),
        ("Paris", "paris ", True),
        ("Paris, France.", "Paris", False),
        ("Parisian.", "Paris", False),
        ("St. Louis.", "St. Louis", True),
        ("J. R. R. Tolkien. He", "J. R. R. Tolkien", True),
        ("3.5.", "3.5", True),
        ("3.5.", "3", False),
        ("", "Paris", False),
        ("Paris\nThe", "Paris", True),
    ],
)
def test_exact_match_stops_where_the_answer_ends(generated, expected, verdict):
    assert is_exact(generated, expected) is verdict


def test_answers_are_cut_at_the_end_of_the_sentence():
    assert first_sentence(" J. R. R. Tolkien. He wrote") == "J. R. R. Tolkien"
    assert first_sentence("3.5 metres\nand more") == "3.5 metres"
    assert first_sentence("in 1990.") == "in 1990"
    assert first_sentence("in the USA. Then") == "in the USA"


def test_prompts_near_the_end_of_the_context():
    model = tiny.tiny_model("gpt2")
    limit = model.context_length
    long = " Oslo" * (limit - 3)
    assert len(model.encode(long)) == limit - 3
    assert isinstance(model.generate([long, "Anna"], max_new_tokens=50)[0], str)
    with pytest.raises(Exception, match="no room for an answer"):
        model.generate(" Oslo" * limit)


def test_what_cannot_be_loaded_is_said_in_one_block(tmp_path):
    folder = tiny.tiny_folder(tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="could not be loaded"):
        load(str(folder))
    with pytest.raises(ModelError, match="did you mean 'world'"):
        load("wrold")
    with pytest.raises(ModelError, match="not a transformers model"):
        load(torch.nn.Linear(2, 2), tiny.tokenizer())
    with pytest.raises(Exception, match="device cannot be used"):
        load(str(tiny.tiny_folder(tmp_path / "other")), device="cuda:77")
