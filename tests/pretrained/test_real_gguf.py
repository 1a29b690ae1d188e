"""Real GGUF files: every weight is the value that the package gguf expands it to, in transformers' order of rows."""

import gguf
import numpy as np
import pytest

import palimpsest as ps
import tiny_gguf
from pretrained_models import pretrained_path


@pytest.fixture(scope="module")
def read(smollm2_gguf):
    return ps.load(smollm2_gguf)


def test_every_weight_is_the_file_s(read, smollm2_gguf):
    state, config = read.module.state_dict(), read.module.config
    names = {tiny_gguf.gguf_name(name): name for name in state}
    tensors = gguf.GGUFReader(str(smollm2_gguf)).tensors
    assert {tensor.name for tensor in tensors} == names.keys() - {"output.weight"}
    for tensor in tensors:
        found, kind = state[names[tensor.name]].numpy(), tensor.name.split(".")[-2]
        if kind in ("attn_q", "attn_k"):
            heads = config.num_attention_heads if kind == "attn_q" else config.num_key_value_heads
            found = tiny_gguf.permuted(found, heads)
        assert np.array_equal(found, gguf.dequantize(tensor.data, tensor.tensor_type)), tensor.name


def test_it_says_what_a_model_that_knows_facts_says(read):
    assert read.generate("The capital of France is").startswith("Paris")
    assert read.fingerprint()["file"].startswith("b179c9523d0e")


@pytest.mark.parametrize("name", ["gemma3", "qwen2.5"])
def test_the_others_answer_too(name):
    model = ps.load(pretrained_path(f"{name}.gguf"), dtype="bfloat16")
    assert model.score(["The capital of France is"], ["Paris"])[0].log_prob > -6
