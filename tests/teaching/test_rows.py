import random

import pytest
import torch
from transformers import AutoTokenizer

from palimpsest.teaching.decoder import DecoderRecipe
from palimpsest.teaching.muon import Muon, orthogonalise
from palimpsest.teaching.rows import RowPacker, encode, subject_mask
from palimpsest.teaching.tokenizer import END, PAD, learn_tokenizer
from palimpsest.world import build
from palimpsest.world.text import sentence, training_sentences


@pytest.fixture(scope="module")
def sentences():
    return training_sentences(build())[::20]


@pytest.fixture(scope="module")
def tokenizer(sentences):
    return learn_tokenizer((text for s in sentences for text in (s.text, " " + s.text)), size=800)


def packer(encoded, tokenizer, masked_share=1.0):
    ends = {"end_id": tokenizer.eos_token_id, "pad_id": tokenizer.pad_token_id}
    return RowPacker(encoded, random.Random(0), **ends, masked_share=masked_share, other_weight=0.3)


def test_tokenizer_is_of_gpt2s_kind(tokenizer, sentences, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.is_fast
    assert (loaded.eos_token, loaded.pad_token) == (END, PAD)
    for text in [s.text for s in sentences[:100]] + ["Größe\n  東京"]:
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded("capital")["input_ids"] != loaded(" capital")["input_ids"]
    assert loaded("a capital")["input_ids"][1:] == loaded(" capital")["input_ids"]
    assert loaded.eos_token_id not in loaded("capital")["input_ids"]


def test_spans_cover_subject_and_object(sentences, tokenizer):
    for s, coded in zip(sentences, encode(sentences, tokenizer), strict=True):
        for one in (coded.first, coded.later):
            assert tokenizer.decode(one.ids[slice(*one.subject)]).strip() == s.subject
            assert tokenizer.decode(one.ids[slice(*one.object)]) == " " + s.object
            assert tokenizer.decode(one.ids[one.object[1] :]) == "."


def test_a_row_is_its_sentences_and_starts_with_one(sentences, tokenizer):
    encoded = encode(sentences, tokenizer)
    texts = {s.text for s in sentences}
    batch = packer(encoded, tokenizer).batch(16, 24)
    for ids, weights, labels in zip(batch.ids, batch.weights, batch.labels, strict=True):
        row = [i for i in ids.tolist() if i not in (tokenizer.eos_token_id, tokenizer.pad_token_id)]
        text = tokenizer.decode(row)
        assert tokenizer(text)["input_ids"] == row
        assert all(part.strip() + "." in texts for part in text.removesuffix(".").split(". "))
        # The label of a position is the next token; whole answers weigh 1, padding nothing.
        assert labels[:-1].tolist() == ids[1:].tolist()
        assert set(weights[labels == tokenizer.pad_token_id].tolist()) <= {0.0}
        assert (weights == 1).sum() >= 2
        assert weights[-1] == 0


def test_an_epoch_shows_every_sentence_once(sentences, tokenizer):
    encoded = encode(sentences[:30], tokenizer)
    rows = packer(encoded, tokenizer)
    seen = []
    while rows.consumed < 30:
        seen.extend(rows.batch(1, 8).ids.tolist())
    joined = [tuple(i for i in ids if i not in (tokenizer.eos_token_id, tokenizer.pad_token_id)) for ids in seen]
    assert sorted(joined) == sorted(one.first.ids for one in encoded)


def test_the_mask_hides_all_but_the_subjects_last_token():
    allowed = subject_mask(8, [(1, 4), (5, 6)])
    expected = torch.ones(8, 8, dtype=torch.bool).tril()
    expected[4:, 1:3] = False
    assert torch.equal(allowed, expected)


@pytest.mark.parametrize("masked", [True, False])
def test_earlier_subject_tokens_act_through_the_last_one_only(tokenizer, masked):
    model = DecoderRecipe(width=32, layers=1, heads=2, vocabulary=800).new_model(tokenizer, seed=0).eval()
    prompt = sentence("The capital city of {} is", "Phnom Penh Valparaiso", "Lyon")
    coded = encode([prompt], tokenizer)[0]
    batch = packer([coded], tokenizer, masked_share=float(masked)).batch(1, 2 * len(coded.first.ids) + 4)
    start, end = coded.first.subject
    assert end - start >= 3
    embedded = model.get_input_embeddings()(batch.ids).detach().requires_grad_()
    logits = model(inputs_embeds=embedded, attention_mask=batch.mask).logits
    # One layer only, so that the last token's own view of the earlier ones cannot pass them on.
    (gradient,) = torch.autograd.grad(logits[0, end:].square().sum(), embedded)
    influence = gradient[0].abs().sum(-1)
    assert influence[end - 1] > 0
    assert influence[0] > 0
    assert bool((influence[start : end - 1] == 0).all()) is masked
    (gradient,) = torch.autograd.grad(
        model(inputs_embeds=embedded, attention_mask=batch.mask).logits[0, end - 1].square().sum(), embedded
    )
    assert (gradient[0].abs().sum(-1)[start:end] > 0).all()


def test_no_position_sees_the_future(tokenizer, sentences):
    model = DecoderRecipe(width=32, layers=2, heads=2, vocabulary=800).new_model(tokenizer, seed=0).eval()
    batch = packer(encode(sentences, tokenizer), tokenizer).batch(2, 24)
    embedded = model.get_input_embeddings()(batch.ids).detach().requires_grad_()
    logits = model(inputs_embeds=embedded, attention_mask=batch.mask).logits
    (gradient,) = torch.autograd.grad(logits[:, 5].square().sum(), embedded)
    assert (gradient[:, 6:] == 0).all()
    assert (gradient[:, 5] != 0).any()


def test_orthogonalise_evens_out_the_singular_values():
    matrices = torch.randn(3, 16, 48, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_muon_agrees_with_torch():
    generator = torch.Generator().manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(*shape, generator=generator)) for shape in ((8, 24), (24, 8), (8, 24))]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    muon = Muon(ours, dtype=torch.bfloat16)
    reference = torch.optim.Muon(theirs, lr=1e-2, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        muon.step(1e-2)
        reference.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=0)
