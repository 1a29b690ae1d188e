"""The scope classifier against its definition, and what its loss may not depend on."""

import pytest
import torch

import tiny
from palimpsest.models.scoped.scope import (
    balanced_cross_entropy,
    scope_classifier,
    small_encoder,
)

TEXTS = ["The capital of France is", "The capital of Italy is", "Anna Keller was born in", "Rome"]


def classifier(form, pooling="mean"):
    torch.manual_seed(0)
    encoder = small_encoder(384, width=16, layers=1, heads=2)
    for parameter in encoder.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return scope_classifier(form, encoder.eval(), tiny.tokenizer(), pooling).eval()


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_an_embedding_classifier_is_the_exponential_of_a_squared_distance(pooling):
    scope = classifier("embedding", pooling)
    vectors = []
    for text in TEXTS:
        ids = torch.tensor([tiny.tokenizer()(f" {text}")["input_ids"]])
        hidden = scope.encoder(input_ids=ids).last_hidden_state[0]
        vectors.append(hidden.mean(0) if pooling == "mean" else hidden[0])
    pairs = [(i, j) for i in range(4) for j in range(4)]
    by_hand = torch.stack([-(vectors[i] - vectors[j]).square().sum() for i, j in pairs])
    found = scope.log_probs([TEXTS[i] for i, _ in pairs], [TEXTS[j] for _, j in pairs])
    assert torch.allclose(found, by_hand, atol=1e-4)
    as_product = scope.against(TEXTS, scope.index(TEXTS), TEXTS)
    assert torch.allclose(as_product.flatten(), by_hand, atol=1e-3)
    matrix = found.exp().reshape(4, 4)
    assert torch.equal(matrix.diag(), torch.ones(4))
    assert torch.allclose(matrix, matrix.t()) and (matrix > 0).all() and (matrix <= 1).all()


def test_cross_attention_gives_one_probability_a_pair_in_either_way_of_asking():
    scope = classifier("cross-attention")
    index = scope.index(TEXTS)
    assert index.shape == (4, 0)
    found = scope.against(TEXTS, index, TEXTS[:2])
    assert found.shape == (2, 4)
    one = scope.log_probs([TEXTS[2]], [TEXTS[1]]).detach()
    assert torch.allclose(found[1, 2], one[0], atol=1e-5) and float(one) < 0


def test_the_order_of_the_memory_only_orders_the_answer():
    scope = classifier("embedding")
    order = [2, 0, 3, 1]
    shuffled = [TEXTS[row] for row in order]
    plain = scope.against(TEXTS, scope.index(TEXTS), ["The capital of France is Lyon"])
    assert torch.allclose(
        scope.against(shuffled, scope.index(shuffled), ["The capital of France is Lyon"]), plain[:, order], atol=1e-4
    )


def test_the_loss_is_balanced_and_finite_where_two_texts_are_one():
    inside, outside = torch.tensor([-0.1, -2.0]), torch.tensor([-0.5, -3.0, -0.2])
    expected = 1.05 - torch.log1p(-outside.exp()).mean()
    assert balanced_cross_entropy(inside, outside) == pytest.approx(float(expected), rel=1e-5)
    assert torch.allclose(balanced_cross_entropy(inside, outside.repeat(7)), balanced_cross_entropy(inside, outside))
    same = torch.zeros(1, requires_grad=True)
    loss = balanced_cross_entropy(inside, same)
    loss.backward()
    assert loss.isfinite() and same.grad.isfinite().all()


def test_a_text_beyond_the_context_is_read_from_its_end():
    scope = classifier("embedding")
    scope._limit = 8
    long = "Rome Oslo Lima Vienna " * 30
    ids = tiny.tokenizer()(f" {long}")["input_ids"][-8:]
    hidden = scope.encoder(input_ids=torch.tensor([ids])).last_hidden_state[0]
    assert torch.allclose(scope.pooled([long])[0], hidden.mean(0), atol=1e-5)
