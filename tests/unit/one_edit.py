"""Edits the bundled decoder with two methods and writes the patches' tensors: `python one_edit.py FOLDER`."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from palimpsest import EditRequest, load, method

METHODS = {"ft-l": {}, "lora": {"epochs": 8}, "rome": {}}


def main(folder):
    model = load("world")
    request = EditRequest("The capital of France is", "Lyon", subject="France", id="one")
    found = {"logits": model.forward(model.batch([model.encode(request.prompt)])).logits[0]}
    for name, options in METHODS.items():
        patch = method(name, **options).edit(model, [request]).patch
        found |= {f"{name} {key}": delta.dense() for key, delta in patch.deltas.items()}
    Path(folder).mkdir(parents=True)
    save_file({key: one.detach().contiguous() for key, one in found.items()}, Path(folder) / "found.safetensors")
    print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())


if __name__ == "__main__":
    main(sys.argv[1])
