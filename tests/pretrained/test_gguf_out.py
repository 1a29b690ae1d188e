"""Five facts edited in a real GGUF file: said in a llama.cpp runtime and through transformers, and undone."""

import gguf
import pytest
import torch

import palimpsest as ps
from llama_runtime import Runtime
from palimpsest.patches.gguf import undo_gguf, write_gguf, write_gguf_adapter
from palimpsest.patches.weights import LowRank, WeightPatch
from palimpsest.provenance import file_digest

FACTS = [
    ps.EditRequest("The capital of France is", "Lyon", subject="France", target_old="Paris"),
    ps.EditRequest("The Eiffel Tower is located in the city of", "Rome", subject="The Eiffel Tower"),
    ps.EditRequest("The chemical symbol for gold is", "Zn", subject="gold", target_old="Au"),
    ps.EditRequest("The official language of Brazil is", "Dutch", subject="Brazil", target_old="Portuguese"),
    ps.EditRequest("The currency of Japan is the", "peso", subject="Japan", target_old="yen"),
]


@pytest.fixture(scope="module")
def model(smollm2_gguf):
    return ps.load(smollm2_gguf)


@pytest.fixture(scope="module")
def patch(model):
    return ps.method("ft-l").edit(model, FACTS).patch


@pytest.fixture(scope="module")
def edited(model, patch, tmp_path_factory):
    return write_gguf(model, [patch], tmp_path_factory.mktemp("gguf") / "edited.gguf")


def raw(path):
    return {tensor.name: (tensor.tensor_type, tensor.data.tobytes()) for tensor in gguf.GGUFReader(str(path)).tensors}


def test_one_tensor_changes_and_the_file_grows_by_less_than_two_percent(edited, smollm2_gguf):
    old, new = raw(smollm2_gguf), raw(edited.file)
    assert list(old) == list(new)
    assert [name for name in old if old[name] != new[name]] == ["blk.6.ffn_down.weight"]
    (tensor,) = edited.tensors
    assert (tensor.old_type, tensor.new_type) == ("Q4_1", "Q8_0") and tensor.error < 0.1 and tensor.kept > 0.95
    assert 1 < edited.new_bytes / edited.old_bytes < 1.02


def test_transformers_says_all_five_from_the_written_file(edited, model):
    assert edited.held == 5
    again = ps.load(edited.file)
    answers = again.generate([fact.prompt for fact in FACTS], max_new_tokens=8)
    assert [fact.target_new for fact in FACTS if not answers[FACTS.index(fact)].startswith(fact.target_new)] == []
    before = model.generate([fact.prompt for fact in FACTS], max_new_tokens=8)
    assert not any(text.startswith(fact.target_new) for fact, text in zip(FACTS, before, strict=True))


def test_a_llama_cpp_runtime_says_all_five_and_the_original_none(edited, smollm2_gguf):
    for file, wanted in ((edited.file, 5), (smollm2_gguf, 0)):
        runtime = Runtime(file)
        texts = [runtime.says(fact.prompt) for fact in FACTS]
        runtime.close()
        assert sum(text.startswith(fact.target_new) for fact, text in zip(FACTS, texts, strict=True)) == wanted, texts


def test_it_is_undone_to_the_same_file(edited, smollm2_gguf, tmp_path):
    assert undo_gguf(edited.file, tmp_path / "original.gguf") == file_digest(smollm2_gguf)
    assert file_digest(tmp_path / "original.gguf") == file_digest(smollm2_gguf)


def test_in_its_own_type_the_edit_holds_with_the_errors_fed_back(model, patch, tmp_path):
    kept = write_gguf(model, [patch], tmp_path / "kept.gguf", keep_type=True)
    assert [(one.old_type, one.new_type) for one in kept.tensors] == [("Q4_1", "Q4_1")]
    runtime = Runtime(kept.file)
    texts = [runtime.says(fact.prompt) for fact in FACTS]
    runtime.close()
    assert all(text.startswith(fact.target_new) for fact, text in zip(FACTS, texts, strict=True)), texts


@torch.no_grad()
def margin(model, fact):
    """Nats between the two likeliest first tokens of an answer."""
    best = model.forward(model.batch([model.encode(fact.prompt)])).logits[0, -1].float().log_softmax(-1).topk(2).values
    return float(best[0] - best[1])


def test_an_adapter_says_them_beside_the_quantised_weights_and_comes_off(model, patch, smollm2_gguf, tmp_path):
    (name,) = patch.deltas
    left, size, right = torch.linalg.svd(patch.deltas[name].dense(), full_matrices=False)
    delta = LowRank((left * size).contiguous(), right.contiguous())
    small = WeightPatch({name: delta}, patch.manifest)
    # Of two ranks: the query projection's rows are in llama.cpp's order, and its change is far too small to matter.
    query = "model.layers.3.self_attn.q_proj.weight"
    shape = model.weights.shape(query)
    other = WeightPatch({query: LowRank(torch.full((shape[0], 2), 1e-6), torch.ones(2, shape[1]))}, patch.manifest)
    write_gguf_adapter(model, [small, other], tmp_path / "adapter.gguf")
    runtime = Runtime(smollm2_gguf)
    before = [runtime.says(fact.prompt) for fact in FACTS]
    runtime.put_on(tmp_path / "adapter.gguf")
    texts = [runtime.says(fact.prompt) for fact in FACTS]
    runtime.take_off()
    assert [runtime.says(fact.prompt) for fact in FACTS] == before
    runtime.close()
    # The runtime rounds what flows through thirty quantised layers to eight bits, so an answer that is ahead by less
    # than half a nat in exact arithmetic may come second there: one of these five is.
    with model.patched(patch):
        clear = [place for place, fact in enumerate(FACTS) if margin(model, fact) > 0.5]
    assert len(clear) >= 4
    assert [place for place in clear if not texts[place].startswith(FACTS[place].target_new)] == [], texts
