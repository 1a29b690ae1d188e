import peft
import pytest
import torch

import tiny
from palimpsest import ConfigError, load, method
from palimpsest.training.adapters import ADAPTER, LoraAdapters
from palimpsest.training.finetune import FinetuneOptions, finetune

OPTIONS = {"learning_rate": 1e-2, "epochs": 10}
PLAIN = {**OPTIONS, "parameters": "all", "spare": False}
MODULES = {
    "gptj": ["transformer.h.0.attn.q_proj", "transformer.h.1.mlp.fc_in"],
    "gpt2": ["transformer.h.1.attn.c_attn"],
}


def lora(**options):
    return method("lora", preset="none", **{**OPTIONS, **options})


@pytest.mark.parametrize("family", ["gptj", "gpt2"])
def test_the_delta_is_what_the_adapter_computes(family):
    model = tiny.tiny_model(family)
    before = model.score(["Anna"], ["Keller"])
    with LoraAdapters(model, MODULES[family], rank=3, alpha=6.0) as adapters:
        assert model.score(["Anna"], ["Keller"]) == before  # B starts at zero
        assert adapters.deltas() == {}
        finetune(model, tiny.requests(), adapters, FinetuneOptions(**OPTIONS), seed=0)
        with_adapter = model.score(["Anna"], ["Keller"])[0].log_prob
        deltas = adapters.deltas()
        layer = model.module.get_submodule(MODULES[family][0])
        by_hand = 2.0 * layer.lora_B[ADAPTER].weight @ layer.lora_A[ADAPTER].weight
        assert all(p.grad is None for n, p in model.module.named_parameters() if "lora_" not in n)
        count = sum(p.numel() for p in adapters.masters())
    first = deltas[MODULES[family][0] + ".weight"]
    assert torch.allclose(first.dense(), by_hand.t() if family == "gpt2" else by_hand, atol=1e-6)
    assert first.rank == 3
    assert count == sum(3 * sum(delta.shape) for delta in deltas.values())
    patch = method("lora", preset="none").edit(model, []).patch
    patch.deltas = deltas
    with model.patched(patch):
        assert model.score(["Anna"], ["Keller"])[0].log_prob == pytest.approx(with_adapter, abs=1e-4)
    assert not any(isinstance(module, peft.tuners.lora.LoraLayer) for module in model.module.modules())


def test_the_update_scales_with_alpha():
    """With SGD on B alone from zero, the first step's B is the same up to the factor alpha / r."""
    model = tiny.tiny_model("gptj")
    one = lora(alpha=8.0, epochs=1, optimizer="sgd").edit(model, tiny.requests()).patch
    two = lora(alpha=16.0, epochs=1, optimizer="sgd").edit(model, tiny.requests()).patch
    for name, delta in one.deltas.items():  # alpha enters the gradient of B and the product: a factor of four
        assert torch.allclose(4 * delta.dense(), two.deltas[name].dense(), atol=1e-7, rtol=1e-3)


def f_learning(name="f-learning-ft", **options):
    own = PLAIN if name == "f-learning-ft" else OPTIONS
    learn = {"forget_options": own, "learn_options": own, "only_mastered": False}
    return method(name, preset="none", **{**learn, **options})


@pytest.mark.parametrize(
    ("name", "learner"), [("f-learning-ft", "ft"), ("f-learning-lora", "lora"), ("f-learning-lora-ft", "ft")]
)
def test_a_rate_of_zero_is_plain_learning_bit_for_bit(name, learner):
    model = tiny.tiny_model("gptj")
    with_rate = f_learning(name, rate=0.0, seed=4).edit(model, tiny.requests()).patch
    own = PLAIN if name == "f-learning-ft" else OPTIONS
    plain = method(learner, preset="none", seed=4, **own).edit(model, tiny.requests()).patch
    assert all(torch.equal(value, with_rate.tensors()[key]) for key, value in plain.tensors().items())


def test_forgetting_is_gradient_ascent_on_the_old_answers():
    """With one SGD step, delta_old = -lr * gradient, so forgetting adds rate * lr * gradient."""
    model = tiny.tiny_model("gptj")
    old = [request.reversed_to_old() for request in tiny.requests()]
    step = {"optimizer": "sgd", "learning_rate": 0.1, "epochs": 1}
    patch = f_learning(rate=0.5, forget_options=step, learn_options={"epochs": 0}).edit(model, tiny.requests()).patch
    towards = method("ft", preset="none", **step).edit(model, old).patch
    for name, delta in towards.deltas.items():
        assert torch.allclose(patch.deltas[name].dense(), -0.5 * delta.dense(), atol=1e-7)
    prompts, answers = [r.prompt for r in old], [r.target_new for r in old]
    before = sum(score.log_prob for score in model.score(prompts, answers))
    with model.patched(patch):
        assert sum(score.log_prob for score in model.score(prompts, answers)) < before


def test_the_patch_is_the_sum_of_its_two_stages():
    model = tiny.tiny_model("gptj")
    patch = f_learning(rate=0.3).edit(model, tiny.requests()).patch
    forget = patch.parts["forget"]
    with model.patched(-0.3 * forget):
        learned = method("ft", preset="none", **PLAIN).edit(model, tiny.requests()).patch
    for name, delta in patch.deltas.items():
        expected = -0.3 * forget.deltas[name].dense() + learned.deltas[name].dense()
        assert torch.allclose(delta.dense(), expected, atol=1e-6)


def test_the_forget_patch_can_be_kept_and_used_again(tmp_path):
    model = tiny.tiny_model("gptj")
    first = f_learning(rate=0.3).edit(model, tiny.requests())
    first.patch.save(tmp_path / "first")
    again = f_learning(rate=0.3, forget_patch=str(tmp_path / "first")).edit(model, tiny.requests())
    assert all(torch.equal(v, again.patch.tensors()[k]) for k, v in first.patch.tensors().items())
    assert "forget" not in again.diagnostics.seconds and "forget" in first.diagnostics.seconds
    other = f_learning(rate=0.1, forget_patch=str(tmp_path / "first" / "parts" / "forget")).edit(model, tiny.requests())
    assert not torch.equal(*(p.tensors()["lm_head.weight/dense"] for p in (first.patch, other.patch)))


def test_facts_that_are_not_known_are_listed_and_left_unforgotten():
    model = tiny.tiny_model("gptj")
    requests = tiny.requests(3)
    known = requests[1].reversed_to_old()
    taught = method("ft", preset="none", **{**PLAIN, "epochs": 60}, append_eos=True, stop_loss=0.01).edit(
        model, [known]
    )
    with model.patched(taught.patch):
        outcome = f_learning(rate=0.3, only_mastered=True).edit(model, requests)
        only = method("ft", preset="none", stop_loss=0.0, **PLAIN).edit(model, [known]).patch
    assert outcome.diagnostics.facts["mastered"] == 1
    assert outcome.diagnostics.facts["not_mastered"] == ["fact-0", "fact-2"]
    assert "knows 1 of 3 old facts" in outcome.diagnostics.notes[0]
    forget = outcome.patch.parts["forget"]
    assert all(torch.equal(value, only.tensors()[key]) for key, value in forget.tensors().items())
    assert f_learning(only_mastered=True).edit(model, requests).patch.parts["forget"].is_empty()


def test_known_facts_are_forgotten_although_they_have_no_loss():
    """The learners' own threshold would leave them out of every step."""
    model = tiny.tiny_model("gptj")
    old = tiny.requests(1)[0].reversed_to_old()
    taught = method("ft", preset="none", **{**PLAIN, "epochs": 60}, append_eos=True, stop_loss=0.001).edit(model, [old])
    with model.patched(taught.patch):
        patch = method("f-learning-ft", preset="none").edit(model, tiny.requests(1)).patch
    assert patch.manifest.diagnostics["facts"]["forget"]["steps"] == 3
    assert not patch.parts["forget"].is_empty()


def test_any_two_weight_methods_can_be_combined():
    model = tiny.tiny_model("gptj")
    forget = {"forget": "locft", "forget_options": {**OPTIONS, "layers": [2]}}
    patch = f_learning("f-learning", **forget, learn="lora").edit(model, tiny.requests(1)).patch
    assert (
        "transformer.h.2.mlp.fc_out.weight" in patch.touched()
        and "transformer.h.0.mlp.fc_out.weight" in patch.touched()
    )
    with pytest.raises(ConfigError, match="memitt"):
        f_learning("f-learning", learn="memitt").edit(model, tiny.requests(1))


def test_options_inside_options_join_those_of_the_preset():
    world = load("world")
    config, preset = method("f-learning-ft", forget_options={"learning_rate": 1e-4}).resolve(world)
    assert preset.name == "world"
    assert config.forget_options == {"epochs": 1, "learning_rate": 1e-4}


def test_a_forget_patch_for_other_facts_is_refused(tmp_path):
    model = tiny.tiny_model("gptj")
    method("ft", preset="none", **PLAIN).edit(model, tiny.requests(1)).patch.save(tmp_path / "learned")
    with pytest.raises(ConfigError, match="about other facts"):
        f_learning(forget_patch=str(tmp_path / "learned")).edit(model, tiny.requests(1))
    f_learning().edit(model, tiny.requests(1)).patch.save(tmp_path / "one")
    outcome = f_learning(forget_patch=str(tmp_path / "one")).edit(model, tiny.requests(2))
    assert "covers 1 of 2" in outcome.diagnostics.notes[0]


@pytest.mark.parametrize("sites", [["resid"], ["mlp"], [], ["attn.qq"]])
def test_sites_without_a_weight_are_refused(sites):
    model = tiny.tiny_model("gptj")
    with pytest.raises(ConfigError):
        lora(sites=sites).edit(model, tiny.requests(1))
    with pytest.raises(ConfigError):
        method("ft", preset="none", parameters="resid").edit(model, tiny.requests(1))
