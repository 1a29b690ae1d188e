"""T5 (1.0 and 1.1) and BART: prompts to the encoder, targets from the decoder, which never sees what it is to say."""

import random

import peft
import pytest
import torch
from torch import nn
from transformers import AutoModelForSeq2SeqLM

import tiny
from palimpsest import Architecture, ConfigError, DataError, EditRequest, ModelError, load, method
from palimpsest.answers import first_sentence
from palimpsest.cli.doctor import examine
from palimpsest.models import tokens
from palimpsest.models.hooks import Point
from palimpsest.models.sites.encoder_decoders import BART, T5
from palimpsest.models.sites.linear import weight_as_out_in
from palimpsest.patches.export import write_adapter, write_merged
from palimpsest.training.objectives import answer_losses

FAMILIES = tiny.ENCODER_DECODERS
PROMPTS = ["The capital of France is", "Anna", "Who wrote it long ago, people of Oslo and Vienna, or", "The river"]
TARGETS = ["Lyon", "Keller was born in Lima.", "the Danube", "that flows through Rome and Vienna"]


def one_by_one(model, prompt, target, *, inputs=lambda start, labels: [start, *labels[:-1]]):
    """Log-probabilities of the labels from bare forward passes, each with one more decoder input than the last."""
    prompt_ids = torch.tensor([model.tokenizer(prompt)["input_ids"]])
    labels = model.tokenizer(target, add_special_tokens=False)["input_ids"]
    fed = inputs(model.module.config.decoder_start_token_id, labels)
    found = []
    with torch.no_grad():
        for place in range(len(labels)):
            decoder = torch.tensor([fed[: place + 1]])
            logits = model.module(input_ids=prompt_ids, decoder_input_ids=decoder, use_cache=False).logits
            found.append(logits[0, -1].double().log_softmax(-1))
    return labels, found


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_a_loop_that_feeds_the_labels_one_by_one(family):
    model = tiny.tiny_model(family)
    assert model.is_encoder_decoder
    for prompt, target, score in zip(PROMPTS, TARGETS, model.score(PROMPTS, TARGETS), strict=True):
        labels, by_hand = one_by_one(model, prompt, target)
        assert score.log_probs == pytest.approx(
            [row[label].item() for row, label in zip(by_hand, labels, strict=True)], abs=1e-4
        )
        assert score.predicted == tuple(int(row.argmax()) for row in by_hand)
        assert score.accuracy == sum(p == t for p, t in zip(score.predicted, labels, strict=True)) / len(labels)
        # A decoder that is fed the labels unshifted sees what it is to say; that would show.
        _, seen = one_by_one(model, prompt, target, inputs=lambda start, labels: labels)
        assert all((one - other).abs().max() > 0.1 for one, other in zip(seen, by_hand, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_predicted_in_a_place_does_not_know_the_label_there(family):
    model = tiny.tiny_model(family)
    encoded = [model.encode("The capital of France is", target) for target in ("the Danube Oslo", "the Rhine Oslo")]
    batch = model.batch(encoded)
    with torch.no_grad():
        danube, rhine = model.logits_at(batch, *model.answer_places(encoded, batch)[:2]).split(3)
    assert torch.equal(danube[:2], rhine[:2]) and not torch.allclose(danube[2], rhine[2], atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_random_model_is_right_by_chance_only(family):
    model = tiny.tiny_model(family)
    words = random.Random(0)
    vocabulary = [word for word in model.tokenizer.get_vocab() if word.startswith("▁") and len(word) > 2]
    pairs = [[" ".join(words.choices(vocabulary, k=k)).replace("▁", "") for k in (5, 3)] for _ in range(400)]
    prompts, targets = zip(*pairs, strict=True)
    accuracy = sum(score.accuracy for score in model.score(prompts, targets)) / len(pairs)
    assert accuracy < 4 / len(model.tokenizer)  # chance is 1 in 169
    said = model.generate(prompts[:100], max_new_tokens=4)
    assert sum(text == target for text, target in zip(said, targets, strict=False)) == 0


def labels_of(model, targets, *, append=()):
    """What the library calls labels: padded with -100, which its loss ignores."""
    rows = [[*model.tokenizer(target, add_special_tokens=False)["input_ids"], *append] for target in targets]
    width = max(map(len, rows))
    return torch.tensor([row + [-100] * (width - len(row)) for row in rows])


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_library_s_loss_on_labels(family):
    model = tiny.tiny_model(family)
    inputs = model.tokenizer(PROMPTS, return_tensors="pt", padding=True)
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    labels = labels_of(model, TARGETS)
    with torch.no_grad():
        loss = model.module(**inputs, labels=labels).loss.item()
    scores = model.score(PROMPTS, TARGETS)
    assert -sum(s.log_prob for s in scores) / sum(len(s.log_probs) for s in scores) == pytest.approx(loss, abs=1e-4)

    batch = model.batch([model.encode(p, t) for p, t in zip(PROMPTS, TARGETS, strict=True)])
    shifted = model.module.prepare_decoder_input_ids_from_labels(labels)
    assert torch.equal(batch.input_ids, inputs["input_ids"])
    real = batch.decoder.attention_mask.bool()
    assert torch.equal(batch.decoder.input_ids[real], shifted[real])


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_either_side_of_either_stack_changes_nothing(family):
    model = tiny.tiny_model(family)
    alone = [model.score([p], [t])[0].log_probs for p, t in zip(PROMPTS, TARGETS, strict=True)]
    for side in ("left", "right"):
        together = model.score(PROMPTS, TARGETS, side=side)
        for score, expected in zip(together, alone, strict=True):
            assert score.log_probs == pytest.approx(expected, abs=1e-4)
    # One prompt with targets of all lengths pads the decoder alone; one target after all prompts the encoder alone.
    for prompts, targets in ((PROMPTS[:1] * 4, TARGETS), (PROMPTS, TARGETS[:1] * 4)):
        expected = [model.score([p], [t])[0].log_prob for p, t in zip(prompts, targets, strict=True)]
        assert [score.log_prob for score in model.score(prompts, targets)] == pytest.approx(expected, abs=1e-4)
    assert model.generate(PROMPTS, max_new_tokens=6) == [model.generate(p, max_new_tokens=6) for p in PROMPTS]


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_is_the_greedy_one(family):
    model = tiny.tiny_model(family)
    for prompt in PROMPTS:
        prompt_ids = torch.tensor([model.tokenizer(prompt)["input_ids"]])
        said = [model.module.config.decoder_start_token_id]
        while len(said) <= 8 and (len(said) == 1 or said[-1] != model.tokenizer.eos_token_id):
            with torch.no_grad():
                decoder = torch.tensor([said])
                logits = model.module(input_ids=prompt_ids, decoder_input_ids=decoder, use_cache=False).logits
            said.append(int(logits[0, -1].argmax()))
        text = model.tokenizer.decode(said[1:], skip_special_tokens=True)
        assert first_sentence(model.generate(prompt, max_new_tokens=8)) == first_sentence(text)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_ends_with_the_end_token_which_can_be_learned(family):
    model = tiny.tiny_model(family)
    [request] = tiny.requests(4)[3:]
    options = {"parameters": "all", "spare": False, "learning_rate": 5e-3, "epochs": 100, "stop_loss": 0.01}
    with model.patched(method("ft", preset="none", append_eos=True, **options).edit(model, [request]).patch):
        assert model.generate(request.prompt) == "the Rhine"
    with model.patched(method("ft", preset="none", **options).edit(model, [request]).patch):
        assert model.generate(request.prompt).startswith("the Rhine")
        assert model.generate(request.prompt) != "the Rhine"


def test_prompts_keep_their_end_token_and_targets_stand_alone():
    model = tiny.tiny_model("t5")
    encoded = model.encode("The capital of France is", "the Rhine")
    assert model.tokenizer.decode(encoded.prompt_ids) == "The capital of France is</s>"
    assert model.tokenizer.convert_ids_to_tokens(encoded.target_ids) == ["▁the", "▁Rhine"]
    for prompt, target in (("", "x"), ("Anna", "")):
        with pytest.raises(DataError, match="no tokens"):
            model.encode(prompt, target)
    request = EditRequest("The capital of France is", "Lyon", subject="France")
    place = tokens.subject_last_token(model.tokenizer, request, chat=None)
    assert model.tokenizer.convert_ids_to_tokens(encoded.prompt_ids[place]) == "▁France"
    batch, found = model.capture([request.prompt], [Point("encoder.embed")])
    france = model.module.shared.weight[encoded.prompt_ids[place]]
    assert batch.starts.tolist() == [0] and torch.equal(found[Point("encoder.embed")][0, place], france)


def test_prompt_and_answer_do_not_share_a_context():
    model = tiny.tiny_model("bart")
    full = " ".join(["Oslo"] * (model.context_length - 1))
    assert len(model.encode(full).prompt_ids) == model.context_length
    assert model.generate(full, max_new_tokens=200)
    assert len(model.score([full], [" ".join(["Oslo"] * 100)])[0].log_probs) == 100
    for prompt, target in ((f"{full} Oslo", None), ("Anna", f"{full} Oslo Oslo")):
        with pytest.raises(DataError, match="at most 128 tokens"):
            model.encode(prompt, target)
    assert tiny.tiny_model("t5").context_length is None


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_belong_to_a_stack_and_are_the_decoder_s_unless_they_say_so(family):
    model = tiny.tiny_model(family)
    sites = model.sites
    assert (model.num_layers, sites.num_encoder_layers) == (3, 2)
    assert {"encoder.mlp.down", "decoder.mlp.down", "decoder.cross.k"} <= set(sites.names())
    assert "encoder.cross.k" not in sites.names()
    for site in sites.names():
        stack, inside = sites.locate(site)
        assert sites.layers_of(site) == (2 if stack == "encoder" else 3)
        with pytest.raises(ModelError, match="out of range"):
            sites.module(site, sites.layers_of(site))
        if stack == "decoder":
            assert sites.module(inside, 2) is sites.module(site, 2)
        if sites.has_weight(site):
            assert f"{stack}." in sites.parameter_name(site, 1)
    gate = model.module.config.model_type == "t5" and model.module.config.is_gated_act
    assert ("decoder.mlp.gate" in sites.names()) is gate
    for wrong in ("encoder.cross.q", "encoder.unembed", "decoder.mlp.dwon"):
        with pytest.raises(ConfigError, match="no site named"):
            sites.module(wrong, 0)


def test_a_decoder_alone_has_no_encoder_s_sites():
    model = tiny.tiny_model("gptj")
    assert not model.is_encoder_decoder and model.sites.names() == list(model.sites.architecture.sites)
    with pytest.raises(ConfigError, match=r"no encoder(.|\n)*mlp\.down"):
        method("ft", preset="none", parameters="encoder.mlp.down").edit(model, tiny.requests(1))
    assert model.sites.module("decoder.mlp.down", 1) is model.sites.module("mlp.down", 1)
    with pytest.raises(ModelError, match="no norm of its own"):
        tiny.tiny_model("bart").sites.module("final_norm")


@pytest.mark.parametrize("family", FAMILIES)
def test_capture_and_intervene_meet_in_both_stacks(family):
    model = tiny.tiny_model(family)
    key, value = Point("encoder.mlp.down", 1, "input"), Point("encoder.mlp.down", 1)
    sources = [Point("decoder.cross.k", 0, "input"), Point("cross.v", 2, "input")]
    points = [key, value, Point("encoder.resid", 1), Point("embed"), Point("resid", 0), *sources]
    batch, found = model.capture(PROMPTS, points)
    layer = model.sites.module("encoder.mlp.down", 1)
    bias = 0 if layer.bias is None else layer.bias
    assert torch.allclose(found[key] @ weight_as_out_in(layer).t() + bias, found[value], atol=1e-5)
    # The decoder's attention to the encoder reads as many tokens as the prompts have; its own part has read one.
    assert all(found[point].shape == (*batch.input_ids.shape, 32) for point in sources)
    assert torch.equal(*(found[point] for point in sources))
    assert found[Point("embed")].shape == found[Point("resid", 0)].shape == (4, 1, 32)

    extra = torch.randn(32, generator=torch.Generator().manual_seed(0))
    before = model.score(PROMPTS, TARGETS)
    with model.intervene({value: lambda out: out + extra}):
        _, changed = model.capture(PROMPTS, [Point("encoder.resid", 1)])
        after = model.score(PROMPTS, TARGETS)
    difference = changed[Point("encoder.resid", 1)] - found[Point("encoder.resid", 1)]
    same = torch.allclose(difference, extra.expand_as(difference), atol=1e-4)
    assert same is model.sites.architecture.mlp_writes_residual
    assert all(abs(one.log_prob - other.log_prob) > 1e-3 for one, other in zip(before, after, strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.module.modules())


@pytest.mark.parametrize("family", [*FAMILIES, "bart-biased"])
def test_logits_at_places_are_the_model_s_whatever_stands_behind_its_head(family):
    """T5 1.0 scales by d_model ** -0.5 between decoder and head, BART adds a bias of its own behind it."""
    module = tiny.tiny_module(family.split("-b")[0])
    if family == "bart-biased":
        module.final_logits_bias.normal_()
    model = load(module, tiny.closing_tokenizer())
    assert model.has_separable_head is (family == "bart")
    encoded = [model.encode(p, t) for p, t in zip(PROMPTS, TARGETS, strict=True)]
    batch = model.batch(encoded)
    rows, columns, _ = model.answer_places(encoded, batch)
    with torch.no_grad():
        logits = model.logits_at(batch, rows, columns)
        whole = module(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            decoder_input_ids=batch.decoder.input_ids,
        ).logits
    assert torch.allclose(logits, whole[rows, columns], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_training_loss_is_the_library_s_end_token_included(family):
    model = tiny.tiny_model(family)
    requests = tiny.requests()
    prompts, targets = [r.prompt for r in requests], [r.target_new for r in requests]
    encoded = [model.encode(p, t) for p, t in zip(prompts, targets, strict=True)]
    sums, counts = answer_losses(model, encoded, loss_on="answer")
    inputs = model.tokenizer(prompts, return_tensors="pt", padding=True)
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = model.module(**inputs, labels=labels_of(model, targets)).loss
    assert (sums.sum() / counts.sum()).item() == pytest.approx(expected.item(), abs=1e-5)

    plain = {"parameters": "all", "spare": False, "optimizer": "sgd", "reduction": "token"}
    step = method("ft", preset="none", learning_rate=0.5, epochs=1, append_eos=True, **plain)
    patch = step.edit(model, requests).patch
    model.module(**inputs, labels=labels_of(model, targets, append=[1])).loss.backward()
    # Tied weights are one storage under one name, which collects the gradients of all its places.
    for name, delta in patch.deltas.items():
        gradient = torch.stack([p.grad for p in model.weights.parameters(name) if p.grad is not None]).sum(0)
        assert torch.allclose(delta.dense(), -0.5 * gradient, atol=1e-5, rtol=1e-3)
    with pytest.raises(ConfigError, match="predicts no token of its prompts"):
        method("ft", preset="none", loss_on="all").edit(model, requests)


@pytest.mark.parametrize(
    ("site", "stack", "count"),
    [("encoder.mlp.down", "encoder", 2), ("mlp.down", "decoder", 3), ("cross.v", "decoder", 3)],
)
def test_fine_tuning_trains_the_stack_that_the_site_names(site, stack, count):
    model = tiny.tiny_model("t5-gated")
    options = {"preset": "none", "layers": "all", "learning_rate": 1e-2, "epochs": 2}
    for made in (method("ft", parameters=site, **options), method("lora", sites=[site], **options)):
        touched = made.edit(model, tiny.requests(1)).patch.touched()
        assert len(touched) == count and all(name.startswith(f"{stack}.") for name in touched)
    last = method("ft", parameters=site, **{**options, "layers": [-1]}).edit(model, tiny.requests(1)).patch.touched()
    assert last == [model.sites.parameter_name(site, count - 1)]


def test_lora_adapts_queries_and_values_of_all_attentions():
    def made(model):
        sites = [one for one in model.sites.names() if one.endswith((".q", ".v"))]
        return method("lora", preset="none", learning_rate=1e-2, epochs=3, sites=sites, layers="all")

    model = tiny.tiny_model("t5")
    assert len(made(model).edit(model, tiny.requests(4)).patch.touched()) == 2 * (2 + 3 + 3)
    # An answer of one token: the decoder's query over one key changes nothing, and has no gradient.
    [request] = tiny.requests(1)
    assert len(tiny.tokenizer_of("t5")(request.target_new, add_special_tokens=False)["input_ids"]) == 1
    touched = made(model).edit(model, [request]).patch.touched()
    assert len(touched) == 2 * (2 + 3 + 3) - 3
    assert not [name for name in touched if "decoder" in name and "SelfAttention.q" in name]
    decoder = tiny.tiny_model("gptj")
    patch = made(decoder).edit(decoder, tiny.requests(1)).patch
    assert {name.split(".")[-2] for name in patch.touched()} == {"q_proj", "v_proj"}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_patches_become_models_and_adapters_that_others_load(family, tmp_path):
    base = tiny.tiny_folder(tmp_path / "base", family)
    model = load(str(base))
    assert type(model.module) is type(tiny.tiny_module(family))
    full = method("ft", preset="none", learning_rate=1e-2, epochs=5).edit(model, tiny.requests()).patch
    low = method("lora", preset="none", learning_rate=2e-2, epochs=8).edit(model, tiny.requests()).patch
    write_merged(model, [full], tmp_path / "merged")
    write_adapter(model, [low], tmp_path / "adapter")
    merged = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged")
    adapted = peft.PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(base), tmp_path / "adapter")
    assert isinstance(adapted, peft.PeftModelForSeq2SeqLM)
    inputs = model.batch([model.encode(p, t) for p, t in zip(PROMPTS, TARGETS, strict=True)])
    unpatched = model.forward(inputs).logits
    for patch, other in ((full, merged), (low, adapted)):
        with torch.no_grad(), model.patched(patch):
            wanted = model.forward(inputs).logits
            assert (other(**model.inputs(inputs)).logits - wanted).abs().max() < 1e-4
            assert (wanted - unpatched).abs().max() > 0.05
    assert load(str(tmp_path / "merged")).generate(PROMPTS, max_new_tokens=4)


@pytest.mark.parametrize("family", FAMILIES)
def test_doctor_shows_both_stacks(family, tmp_path):
    found = examine(load(str(tiny.tiny_folder(tmp_path / "model", family))))
    sites = {site["site"]: site for site in found["sites"]}
    assert (found["layers"], found["encoder_layers"]) == (3, 2)
    assert sites["encoder.mlp.down"]["weight_shape"] == sites["decoder.mlp.down"]["weight_shape"] == [32, 48]
    assert "encoder" in sites["encoder.attn.q"]["module"] and "decoder" in sites["decoder.cross.q"]["module"]
    assert ("lm_head.weight" in sum(found["tied_weights"], [])) is (family != "t5-gated")
    assert found["tokenizer"]["adds_end_token"] is True
    assert {"ft", "ft-l", "lora"} <= {row["method"] for row in found["methods"] if row["can_edit"]}


def test_wrong_rows_and_unknown_starts_are_found_out_at_load():
    sites = {**T5.sites, "cross.out": T5.sites["mlp.up"]}
    for row, words in (
        (Architecture(**{**vars(T5), "sites": sites}), "decoder.cross.out of layer 0"),
        (Architecture(**{**vars(T5), "encoder": None}), "is_encoder_decoder = True"),
        (BART, "encoder.blocks|decoder.blocks"),
    ):
        with pytest.raises(ModelError, match=words):
            load(tiny.tiny_module("t5"), tiny.closing_tokenizer(), architecture=row)
    module = tiny.tiny_module("t5")
    module.config.decoder_start_token_id = module.generation_config.decoder_start_token_id = None
    with pytest.raises(ModelError, match="what its decoder starts from"):
        load(module, tiny.closing_tokenizer())
    module.generation_config.decoder_start_token_id = 0
    assert load(module, tiny.closing_tokenizer()).generate("Anna", max_new_tokens=2)


def test_a_decoder_taken_out_of_an_encoder_decoder_has_no_row():
    from transformers import BartForCausalLM

    module = BartForCausalLM(tiny.tiny_config("bart"))
    assert isinstance(module.lm_head, nn.Linear)
    with pytest.raises(ModelError, match="is_encoder_decoder = True"):
        load(module, tiny.closing_tokenizer())
