"""How the parameters of real models lie in their GGUF files: found by value, in the way llama.cpp turns them."""

import json
from types import SimpleNamespace

import pytest
from safetensors import safe_open

from palimpsest.checkpoints import GgufLayout, read_header
from pretrained_models import pretrained_path

Q, K = "self_attn.q_proj.weight", "self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("name", "permuted", "shifted"),
    [("smollm2", {Q: 9, K: 3}, False), ("gemma3", {}, True), ("qwen2.5", {}, False)],
)
def test_a_block_s_parameters_are_found_as_llama_cpp_turned_them(name, permuted, shifted):
    folder, file = pretrained_path(name), pretrained_path(f"{name}.gguf")
    config = SimpleNamespace(**json.loads((folder / "config.json").read_text()))
    layout = GgufLayout(read_header(file), config, None)
    with safe_open(folder / "model.safetensors", framework="pt") as stored:
        names = [one for one in stored.keys() if one.startswith("model.layers.1.") or one == "model.norm.weight"]  # noqa: SIM118
        places = {one: layout.find(one, stored.get_tensor(one).float().numpy()) for one in names}
    assert len({place.tensor.name for place in places.values()}) == len(names) >= 10
    for one, place in places.items():
        part = one.removeprefix("model.layers.1.")
        is_norm = part.endswith("norm.weight")
        wanted = "permuted" if part in permuted else "shifted" if shifted and is_norm else "plain"
        assert (place.turn.how, place.turn.heads) == (wanted, permuted.get(part, 0)), one
